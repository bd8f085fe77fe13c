// Which image is destroyed or edited: an example, one that was dropped, or one that was drawn.

import { get, isLeft, postBytes } from "./api.js";
import { fill, freshId, h } from "./dom.js";
import { choice, dropPlace, field, words } from "./controls.js";
import { canvasOf, cut, picture } from "./sprites.js";

/** The reference of an image from the address; `of` begins the names of its keys where there is another. */
export function refOf(query, of = "", usual = 0) {
  if (query.has(`${of}upload`)) return { kind: "upload", id: query.get(`${of}upload`) };
  const drawn = query.get(`${of}drawn`)?.match(/^([^.]+)\.(\d+)$/);
  if (drawn) return { kind: "drawn", job: drawn[1], image: Number(drawn[2]) };
  return { kind: "example", number: Number(query.get(`${of}image`) ?? usual) };
}

/** What the address keeps of it. */
export function keepRef(query, ref, of = "", usual = 0) {
  for (const key of ["upload", "drawn", "image"]) query.delete(of + key);
  if (ref.kind === "upload") query.set(`${of}upload`, ref.id);
  else if (ref.kind === "drawn") query.set(`${of}drawn`, `${ref.job}.${ref.image}`);
  else if (ref.number !== usual) query.set(`${of}image`, ref.number);
}

/** The classes of a run to choose from, and none of them, by that name. */
export const classesOf = (run, none) => [["", none], ...Array.from({ length: run.num_classes || run.clusters }, (_, k) => [String(k), run.class_names[k] ?? `cluster ${k}`])];

/** The choice of an image, of the noise and of the class. changed() is called for each. */
export function imagePart(run, state, { changed, signal, root, limit }) {
  const seed = h("input", { type: "number", min: 0, step: 1, value: state.seed });
  const classes = choice(classesOf(run, "not told"), state.label === null ? "" : String(state.label));
  const { strip, drop, said, another } = pickPart(run, state, { changed, signal, zone: root, limit });

  seed.addEventListener("input", () => {
    if (seed.value === "" || Number(seed.value) < 0) return;
    state.seed = Number(seed.value);
    changed();
  });
  classes.addEventListener("change", () => {
    state.label = classes.value === "" ? null : Number(classes.value);
    changed();
  });
  return h(
    "section",
    { class: "panel stack", "aria-label": "What is destroyed" },
    strip,
    said,
    another,
    h("div", { class: "row wide-row" }, drop, field("Seed of the noise", seed), (run.num_classes > 0 || run.clusters > 0) && field("Class told to the network", classes)),
  );
}

/** The choice of an image alone: state.image is set, then changed() is called. */
export function pickPart(run, state, { changed, signal, zone, limit, name = "Image" }) {
  const said = words();
  const group = freshId("example");
  const strip = h("fieldset", { class: "strip" }, h("legend", null, name));
  const drop = dropPlace("or drop any picture; it is brought to the run's size", take, { signal, zone });
  const another = h("p", { class: "quiet" });

  async function take(file) {
    if (file.size > limit) throw new Error(`This file is larger than ${Math.round(limit / 2 ** 20)} MiB, more than the studio takes.`);
    const kept = await postBytes(`/images?file=${encodeURIComponent(file.name.slice(0, 255))}`, file);
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
    another.hidden = image.kind === "example";
  }

  async function load() {
    const [about, sprite] = await Promise.all([get(`/runs/${run.id}/examples`, signal), picture(`/api/runs/${run.id}/examples.png`, signal)]);
    const radios = Array.from({ length: about.count }, (_, number) => {
      const name = about.labels[number] ?? `Image ${number}`;
      const canvas = canvasOf(about.shape, 56);
      cut(canvas, sprite, about.columns, number);
      return h("label", { title: name }, h("input", { type: "radio", name: group, value: number, "aria-label": `${number}: ${name}`, onchange: () => choose({ kind: "example", number }) }), canvas);
    });
    fill(strip, h("legend", null, about.of === "held-out" ? `${name}: held out, the network never saw them` : `${name}: from the training set`), radios);
    tell();
  }

  load().catch((error) => !isLeft(error) && said.fail(error));
  tell();
  return { strip, drop: drop.element, said: said.element, another };
}
