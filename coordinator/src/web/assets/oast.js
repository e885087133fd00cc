// Keeps a page fresh: fetches it again and replaces what is marked data-live, and follows the
// log. Without it every page is whole as it came.
"use strict";

const REFRESH_MS = 1000;
const RETRY_MS = 2000;
const LINES_MAX = 20000;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function refresh() {
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const next = fresh.getElementById(old.id);
    // Untouched parts keep their selection and focus.
    if (next && next.outerHTML !== old.outerHTML) old.replaceWith(document.adoptNode(next));
  }
  document.title = fresh.title;
}

async function keepFresh() {
  const offline = document.getElementById("offline");
  for (;;) {
    await pause(document.hidden ? 5 * REFRESH_MS : REFRESH_MS);
    try {
      await refresh();
      offline.hidden = true;
    } catch {
      offline.hidden = false;
      await pause(RETRY_MS);
    }
  }
}

function show(log, line) {
  const row = document.createElement("span");
  row.className = line.stream;
  const clock = document.createElement("i");
  clock.textContent = line.clock;
  row.append(clock, line.text + "\n");
  log.append(row);
  if (log.childElementCount > LINES_MAX) log.firstElementChild.remove();
}

async function follow(log) {
  const box = document.getElementById("follow");
  box.parentElement.hidden = false;
  log.addEventListener("scroll", () => {
    box.checked = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  });
  const toEnd = () => { if (box.checked) log.scrollTop = log.scrollHeight; };
  box.addEventListener("change", toEnd);
  toEnd();
  let shown = 0;
  for (;;) {
    try {
      const reader = (await fetch(log.dataset.log)).body.getReader();
      const decoder = new TextDecoder();
      let rest = "";
      let seen = 0;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
        rest = lines.pop();
        // The first stream begins with what the page has already.
        if (shown === 0 && seen === 0) log.replaceChildren();
        for (const line of lines) {
          seen += 1;
          // After a reconnect the log comes from its beginning again.
          if (seen > shown) { shown = seen; show(log, JSON.parse(line)); }
        }
        toEnd();
      }
    } catch { /* the member went away; another one may answer under this address */ }
    const run = document.getElementById("run");
    if (run && run.dataset.ended === "yes") return;
    await pause(RETRY_MS);
  }
}

const log = document.getElementById("log");
if (log) follow(log);
keepFresh();
