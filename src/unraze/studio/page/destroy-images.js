// Which image is destroyed: an example, one that was dropped, or one that was drawn.

import { get, isLeft, postBytes } from "./api.js";
import { fill, h } from "./dom.js";
import { choice, dropPlace, field, words } from "./controls.js";
import { canvasOf, cut, picture } from "./sprites.js";

/** The reference of an image from the address. */
export function refOf(query) {
  if (query.has("upload")) return { kind: "upload", id: query.get("upload") };
  const drawn = query.get("drawn")?.match(/^([^.]+)\.(\d+)$/);
  if (drawn) return { kind: "drawn", job: drawn[1], image: Number(drawn[2]) };
  return { kind: "example", number: Number(query.get("image") ?? 0) };
}

/** What the address keeps of it. */
export function keepRef(query, ref) {
  for (const key of ["upload", "drawn", "image"]) query.delete(key);
  if (ref.kind === "upload") query.set("upload", ref.id);
  else if (ref.kind === "drawn") query.set("drawn", `${ref.job}.${ref.image}`);
  else if (ref.number) query.set("image", ref.number);
}

/** The choice of an image, of the noise and of the class. changed() is called for each. */
export function imagePart(run, state, { changed, signal, root, limit }) {
  const said = words();
  const strip = h("fieldset", { class: "strip" }, h("legend", null, "Image"));
  const seed = h("input", { type: "number", min: 0, step: 1, value: state.seed });
  const classes = choice([["", "not told"], ...Array.from({ length: run.num_classes || run.clusters }, (_, k) => [String(k), run.class_names[k] ?? `cluster ${k}`])], state.label === null ? "" : String(state.label));
  const drop = dropPlace("or drop any picture; it is brought to the run's size", take, { signal, zone: root });
  const another = h("p", { class: "quiet" });

  seed.addEventListener("input", () => {
    if (seed.value === "" || Number(seed.value) < 0) return;
    state.seed = Number(seed.value);
    changed();
  });
  classes.addEventListener("change", () => {
    state.label = classes.value === "" ? null : Number(classes.value);
    changed();
  });

  async function take(file) {
    if (file.size > limit) throw new Error(`This file is larger than ${Math.round(limit / 2 ** 20)} MiB, more than the studio takes.`);
    const kept = await postBytes("/images", file);
    choose({ kind: "upload", id: kept.id });
    return `${file.name}: ${kept.width} \u00d7 ${kept.height}`;
  }

  function choose(ref) {
    state.image = ref;
    tell();
    changed();
  }

  function tell() {
    const { image } = state;
    for (const radio of strip.querySelectorAll("input")) radio.checked = image.kind === "example" && Number(radio.value) === image.number;
    another.textContent = image.kind === "upload" ? "A picture that you gave is shown." : image.kind === "drawn" ? `Picture ${image.image} of a drawing is shown.` : "";
  }

  async function load() {
    const [about, sprite] = await Promise.all([get(`/runs/${run.id}/examples`, signal), picture(`/api/runs/${run.id}/examples.png`, signal)]);
    const radios = Array.from({ length: about.count }, (_, number) => {
      const name = about.labels[number] ?? `Image ${number}`;
      const canvas = canvasOf(about.shape, 56);
      cut(canvas, sprite, about.columns, number);
      return h("label", { title: name }, h("input", { type: "radio", name: "example", value: number, "aria-label": `${number}: ${name}`, onchange: () => choose({ kind: "example", number }) }), canvas);
    });
    fill(strip, h("legend", null, about.of === "held-out" ? "Image: held out, the network never saw them" : "Image: from the training set"), radios);
    tell();
  }

  load().catch((error) => !isLeft(error) && said.fail(error));
  tell();
  return h(
    "section",
    { class: "panel stack", "aria-label": "What is destroyed" },
    strip,
    said.element,
    another,
    h("div", { class: "row wide-row" }, drop.element, field("Seed of the noise", seed), (run.num_classes > 0 || run.clusters > 0) && field("Class told to the network", classes)),
  );
}
