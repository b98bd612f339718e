// The part of the page that runs in the browser alone: files, the side list on a phone, light and dark, editing,
// other tabs.

() => {
  const frame = document.querySelector("#frame");
  const dark = (on) => document.body.classList.toggle("dark", on);

  window.finechat = {
    // file: {name, text}, which the page's server made from the chat
    save(file) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([file.text], { type: "text/plain" }));
      link.download = file.name;
      link.click();
      URL.revokeObjectURL(link.href);
    },
    // Return the text of the file that the reader picks, or null.
    open() {
      return new Promise((resolve) => {
        const picker = document.createElement("input");
        picker.type = "file";
        picker.accept = ".json,.md,.txt";
        picker.onchange = async () => resolve(await picker.files[0].text());
        picker.oncancel = () => resolve(null);
        picker.click();
      });
    },
    menu() {
      frame.classList.toggle("side-toggled");
    },
    theme() {
      const on = !document.body.classList.contains("dark");
      dark(on);
      localStorage.setItem("theme", on ? "dark" : "light");
    },
  };

  const theme = localStorage.getItem("theme");
  if (theme) dark(theme === "dark");

  // The page shows a question as markup. The edit box must hold its text.
  const toText = (box) => {
    const markup = new DOMParser().parseFromString(box.value, "text/html");
    box.setAttribute("aria-label", "Edit the message");
    box.value = markup.querySelector("pre.question")?.textContent ?? box.value;
    box.dispatchEvent(new Event("input"));
  };

  // Add what Gradio omits for screen readers and keyboards: who speaks, whether a card is open, focus on code.
  const name = (row) => {
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", row.matches(".user-row") ? "You" : "Answer");
    row.querySelectorAll("[data-testid][aria-label]").forEach((text) => text.removeAttribute("aria-label"));
  };
  // Scroll to a new question even if the reader has scrolled away from the end.
  const asked = new WeakMap();
  const follow = (box) => {
    const count = box.querySelectorAll(".user-row").length;
    if (count > (asked.get(box) ?? 0)) box.scrollTo(0, box.scrollHeight);
    asked.set(box, count);
  };

  new MutationObserver(() => {
    document.querySelectorAll(".bubble-wrap").forEach(follow);
    document.querySelectorAll(".edit-textarea:not([aria-label])").forEach(toText);
    document.querySelectorAll(".message-row:has([data-testid][aria-label])").forEach(name);
    document.querySelectorAll("pre:not(.question, [tabindex])").forEach((code) => code.setAttribute("tabindex", "0"));
    document.querySelectorAll(".examples[role=list]").forEach((list) => list.setAttribute("role", "group"));
    document.querySelectorAll(".gr-accordion > .label-wrap").forEach((button) => {
      button.setAttribute("aria-expanded", button.classList.contains("open"));
    });
  }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["class"] });

  // Enter must not send while an answer is running: the question would come between the last one and its answer.
  document.addEventListener(
    "keydown",
    (event) => {
      const sends = event.key === "Enter" && !event.shiftKey && event.target.matches("#chat-input textarea");
      if (!sends || !document.querySelector("#stop")) return;
      event.preventDefault();
      event.stopPropagation();
    },
    { capture: true },
  );

  // On a phone the side list covers the chat; hide it once a chat is chosen.
  document.addEventListener("change", (event) => {
    if (event.target.closest("#chats")) frame.classList.remove("side-toggled");
  });
  document.addEventListener("click", (event) => {
    if (!event.isTrusted) return;
    if (event.target.closest("#new-chat") || !event.target.closest("#side, #menu")) {
      if (matchMedia("(max-width: 50rem)").matches) frame.classList.remove("side-toggled");
    }
    for (const card of ["#settings", "#more"]) {
      const open = document.querySelector(`${card} > .label-wrap.open`);
      const within = event.target.closest(`${card}`);
      if (open && (!within || event.target.closest("#more [data-testid=accordion-content] button"))) open.click();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    frame.classList.remove("side-toggled");
    document.querySelectorAll("#settings > .label-wrap.open, #more > .label-wrap.open").forEach((open) => {
      open.click();
      open.focus();
    });
  });

  // If another tab has changed the chats, load them before this one overwrites them.
  let stale = false;
  addEventListener("storage", (event) => {
    if (["chat", "shelf"].includes(event.key)) stale = true;
  });
  document.addEventListener("visibilitychange", () => {
    const writing = document.querySelector("#chat-input textarea")?.value || document.querySelector("#stop");
    if (!document.hidden && stale && !writing) location.reload();
  });
}
