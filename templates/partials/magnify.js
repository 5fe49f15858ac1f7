// A picture in a stage is magnified by buttons, or by a click between its fitting and its full size.
function magnifier(stage, done = () => {}) {
  const layersOf = () => stage.querySelector(".layers");
  const zoomOf = (layers) => Number(layers.style.getPropertyValue("--zoom")) || 1;
  const fullOf = (layers) => (layers.querySelector("img").naturalWidth * zoomOf(layers)) / layers.clientWidth;
  const set = (layers, wanted, across = 0.5, down = 0.5) => {
    layers.style.setProperty("--zoom", Math.min(Math.max(wanted, 1), Math.max(4, 2 * fullOf(layers))));
    stage.scrollLeft = across * layers.clientWidth - stage.clientWidth / 2;
    stage.scrollTop = down * layers.clientHeight - stage.clientHeight / 2;
    done();
  };
  stage.addEventListener("click", ({ clientX, clientY }) => {
    const layers = layersOf();
    if (!layers?.querySelector("img")) return;
    const box = layers.getBoundingClientRect();
    const wanted = zoomOf(layers) > 1 ? 1 : Math.max(1.5, fullOf(layers));
    set(layers, wanted, (clientX - box.left) / box.width, (clientY - box.top) / box.height);
  });
  return (factor) => set(layersOf(), zoomOf(layersOf()) * factor);
}
