"use strict";
const { charts, datasets } = JSON.parse(document.getElementById("data").textContent);
for (const [id, spec] of Object.entries(charts)) {
  const part = id.slice(id.lastIndexOf("-") + 1);
  const full = { ...spec, datasets: datasets[part] };
  vegaEmbed(`#${id}`, full, { renderer: "svg", actions: false }).catch((error) => {
    document.getElementById(id).textContent = `This chart cannot be drawn: ${error.message}`;
    console.error(error);
  });
}
// Tables that do not fit say so, and keep the column that names their rows.
function fit() {
  for (const box of document.querySelectorAll(".wide:has(> table)")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls === box.classList.contains("scrolls")) continue;
    box.classList.toggle("scrolls", scrolls);
    if (scrolls) box.insertAdjacentHTML("beforebegin", '<p class="hint">More columns: scroll →</p>');
    else box.previousElementSibling?.matches(".hint") && box.previousElementSibling.remove();
  }
}
fit();
addEventListener("resize", fit);
addEventListener("toggle", fit, true);
// What a link leads to is shown.
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", () => {
    const topic = document.querySelector(`details[id="${link.hash.slice(1)}"]`);
    if (topic) topic.open = true;
  });
}
// What is folded on the screen is printed.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details:not([open])")) {
    folded.open = true;
    folded.dataset.printed = "";
  }
});
addEventListener("afterprint", () => {
  for (const folded of document.querySelectorAll("details[data-printed]")) {
    folded.open = false;
    delete folded.dataset.printed;
  }
});
