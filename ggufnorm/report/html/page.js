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
