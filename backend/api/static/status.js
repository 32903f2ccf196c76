// Keeps the status page current: only sections whose content changed are replaced, so that scrolling, open details and
// the focus stay. A page in the background asks for nothing.
"use strict";
const every = Number(document.body.dataset.refresh) * 1000;
const FOCUSABLE = "a, button, summary";
let isSending = false;

function replaceChanged(fresh) {
  const main = document.querySelector("main");
  const incoming = [...fresh.querySelectorAll("main > section")];
  const names = incoming.map(section => section.id);
  const isSame = names.join() === [...main.children].map(section => section.id).join();
  if (!isSame) { main.replaceChildren(...incoming.map(section => document.importNode(section, true))); return; }
  for (const section of incoming) {
    const old = document.getElementById(section.id);
    if (old.dataset.source === section.outerHTML) continue;
    const focused = [...old.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
    const open = [...old.querySelectorAll("details[id]")].map(part => [part.id, part.open]);
    const copy = document.importNode(section, true);
    for (const [id, isOpen] of open) {
      const part = copy.querySelector(`#${CSS.escape(id)}`);
      if (part) part.open = isOpen;
    }
    copy.dataset.source = section.outerHTML;
    old.replaceWith(copy);
    if (focused >= 0) copy.querySelectorAll(FOCUSABLE)[focused]?.focus({preventScroll: true});
  }
}

addEventListener("submit", event => {
  const form = event.target;
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) { event.preventDefault(); return; }
  const button = form.querySelector("button");
  button.textContent = form.dataset.busy || "…";
  setTimeout(() => { button.disabled = true; });
  isSending = true;
});

setInterval(async () => {
  if (document.hidden || isSending || !getSelection().isCollapsed) return;
  try {
    const answer = await fetch(location.href, {credentials: "same-origin"});
    if (!answer.ok || isSending) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    replaceChanged(fresh);
  } catch { document.title = "No answer: Transfiner"; }
}, every);
