// Choices that belong together share a name, so that the browser gives them one tab stop and the arrow keys.
let groups = 0;
const share = () => {
  for (const group of document.querySelectorAll("fieldset")) {
    group.dataset.group ||= `group-${++groups}`;
    for (const choice of group.querySelectorAll("input[type=radio]")) {
      if (choice.name !== group.dataset.group) choice.name = group.dataset.group;
    }
  }
};
new MutationObserver(share).observe(document, { childList: true, subtree: true, attributeFilter: ["name"] });
// A file that is given is what is meant, also when it is refused: nothing else runs in its place.
const given = (event) => {
  if (event.target.closest?.("#upload")) document.querySelector("#picture-choice input[type=radio]")?.click();
};
for (const kind of ["change", "drop"]) document.addEventListener(kind, given, true);
