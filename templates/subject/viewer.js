// Lays any choice of tissues over the slices, filled or outlined; the label picture holds one index per pixel.
for (const viewer of document.querySelectorAll(".viewer")) {
  const canvas = viewer.querySelector("canvas");
  if (!canvas) continue;
  const toggles = [...viewer.querySelectorAll("[data-index]")];
  const styles = [...viewer.querySelectorAll("[data-style]")];
  const opacity = viewer.querySelector("[data-opacity]");
  const all = viewer.querySelector("[data-all]");
  const labels = new Image();
  let indices = null;
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  const outlined = () => styles.some((button) => pressed(button) && button.dataset.style === "outlines");

  // Whether a shown tissue ends within so many pixels; as thin as can be seen at this size.
  const borders = (shown) => {
    const [width, height] = [canvas.width, canvas.height];
    const reach = Math.max(1, Math.round(width / canvas.clientWidth / 2)) || 1;
    const tissue = (at) => (shown[indices[4 * at]] ? indices[4 * at] : 0);
    return (at) => {
      const [row, column, own] = [Math.floor(at / width), at % width, tissue(at)];
      return (column >= reach && tissue(at - reach) !== own) || (column + reach < width && tissue(at + reach) !== own)
        || (row >= reach && tissue(at - reach * width) !== own)
        || (row + reach < height && tissue(at + reach * width) !== own);
    };
  };

  const draw = () => {
    if (!indices) return;
    const lookup = new Uint32Array(256);
    for (const toggle of toggles.filter(pressed)) {
      const color = parseInt(toggle.dataset.color.slice(1), 16);
      // Canvas pixels are red, green, blue, alpha in memory order.
      lookup[Number(toggle.dataset.index)] = (255 << 24 | (color & 255) << 16 | (color & 0xff00) | color >> 16) >>> 0;
    }
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(picture.data.buffer);
    const drawn = outlined() ? borders(lookup) : () => true;
    for (let at = 0; at < pixels.length; at += 1) {
      const color = lookup[indices[4 * at]];
      if (color && drawn(at)) pixels[at] = color;
    }
    context.putImageData(picture, 0, 0);
    canvas.style.opacity = outlined() ? 1 : opacity.value / 100;
    opacity.disabled = outlined();
    all.textContent = toggles.some(pressed) ? "No tissues" : "All tissues";
  };

  labels.onload = () => {
    [canvas.width, canvas.height] = [labels.naturalWidth, labels.naturalHeight];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(labels, 0, 0);
    indices = context.getImageData(0, 0, canvas.width, canvas.height).data;
    draw();
    viewer.dataset.ready = "yes";
  };
  labels.src = canvas.dataset.tissues;
  const magnify = magnifier(viewer.querySelector(".stage"), () => { if (outlined()) draw(); });
  opacity.addEventListener("input", draw);
  viewer.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    if (button.dataset.index) {
      button.setAttribute("aria-pressed", String(!pressed(button)));
    } else if (button.dataset.style) {
      for (const each of styles) each.setAttribute("aria-pressed", String(each === button));
    } else if (button === all) {
      const none = !toggles.some(pressed);
      for (const toggle of toggles) toggle.setAttribute("aria-pressed", String(none));
    } else if (button.dataset.zoom) {
      magnify(button.dataset.zoom > 0 ? 1.5 : 1 / 1.5);
    }
    draw();
  });
}
