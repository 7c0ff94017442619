"use strict";
(() => {
  const shown = document.documentElement.dataset.state, kept = "velocity-open";
  addEventListener("DOMContentLoaded", () => {
    const all = [...document.querySelectorAll("details[id]")];
    const open = JSON.parse(sessionStorage.getItem(kept) || "null");
    if (open) for (const one of all) one.open = open.includes(one.id);
    for (const one of all) one.addEventListener("toggle", () =>
      sessionStorage.setItem(kept, JSON.stringify(all.filter(it => it.open).map(it => it.id))));
  });
  setInterval(async () => {
    const live = document.getElementById("live");
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.status);
      if (await answer.text() !== shown) location.reload();
      live.textContent = "live";
      live.classList.remove("gone");
    } catch {
      live.textContent = "nobody serves this page any more";
      live.classList.add("gone");
    }
  }, 3000);
})();
