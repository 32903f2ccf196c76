"""What tests share: doubles, helper processes, builders. No tests here."""
