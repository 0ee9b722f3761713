// One photograph with what is known of it: a panel beside the grid, or the whole of a narrow screen.

import { siteUrl } from "../shared/config.js";
import { byId, countOf, fill, formatBytes, h, printable } from "../shared/dom.js";
import { messageOf } from "./client.js";
import { stripItem } from "./strip.js";
import { PhotoList } from "./photo_list.js";
import { shownName, shownOffset, shownTime, splitName } from "./photo_texts.js";

/** @typedef {import("./photo_texts.js").PhotoFacts} PhotoFacts */
/** @typedef {import("./photo_list.js").FactStore} FactStore */

/**
 * @typedef {object} PanelEvents
 * @property {(index: number) => void} onMove another photograph is shown
 * @property {() => void} onClose
 * @property {(id: number, name: string, minus: boolean) => void} onLike
 * @property {() => boolean} canAvoid whether anything is searched for: what is avoided needs that
 */

const WIDE = "(min-width: 1000px)";

export class DetailsPanel {
  /**
   * @param {FactStore} facts
   * @param {PanelEvents} events
   */
  constructor(facts, events) {
    this.facts = facts;
    this.events = events;
    this.dialog = /** @type {HTMLDialogElement} */ (byId("details"));
    /** @type {PhotoList | null} */
    this.list = null;
    this.index = 0;
    this.shown = 0; // counts what is shown: an answer that comes too late is dropped
    byId("details-close").addEventListener("click", () => this.close());
    byId("details-previous").addEventListener("click", () => this.move(-1));
    byId("details-next").addEventListener("click", () => this.move(1));
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.close();
    });
    this.dialog.addEventListener("keydown", (event) => this.onKey(event));
    matchMedia(WIDE).addEventListener("change", () => {
      if (this.dialog.open) this.raise();
    });
  }

  get isOpen() {
    return this.dialog.open;
  }

  /**
   * Show a photograph.
   * @param {PhotoList} list
   * @param {number} index
   * @param {{focus?: boolean}} [options]
   */
  open(list, index, { focus = true } = {}) {
    this.list = list;
    this.index = index;
    if (!this.dialog.open) this.raise();
    void this.draw();
    if (focus) byId("details-close").focus();
  }

  /** Open the dialog: as a panel where there is room beside the grid, else over everything. */
  raise() {
    const focused = document.activeElement;
    if (this.dialog.open) this.dialog.close();
    const isWide = matchMedia(WIDE).matches;
    if (isWide) this.dialog.show();
    else this.dialog.showModal();
    document.body.classList.toggle("with-panel", isWide);
    if (focused instanceof HTMLElement && isWide) focused.focus({ preventScroll: true });
  }

  /** @param {{tell?: boolean}} [options] */
  close({ tell = true } = {}) {
    if (!this.dialog.open) return;
    this.dialog.close();
    this.shown += 1;
    document.body.classList.remove("with-panel");
    fill(byId("details-picture"));
    if (tell) this.events.onClose();
  }

  /** @param {number} by */
  move(by) {
    const to = this.index + by;
    if (!this.list || to < 0 || to >= this.list.length) return;
    this.index = to;
    void this.draw();
    this.events.onMove(to);
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLInputElement) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowUp") this.move(-1);
    else if (event.key === "ArrowRight" || event.key === "ArrowDown") this.move(1);
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
  }

  /** Say which one of how many is shown; the list may have grown. */
  drawPlace() {
    const count = this.list?.length ?? 0;
    byId("details-place").textContent =
      `${(this.index + 1).toLocaleString("en")} of ${count.toLocaleString("en")}`;
    /** @type {HTMLButtonElement} */ (byId("details-previous")).disabled = this.index === 0;
    /** @type {HTMLButtonElement} */ (byId("details-next")).disabled = this.index >= count - 1;
  }

  async draw() {
    const list = /** @type {PhotoList} */ (this.list);
    const id = /** @type {number} */ (list.ids[this.index]);
    this.shown += 1;
    const turn = this.shown;
    this.drawPlace();
    const early = this.facts.get(id);
    this.drawPicture(id, early ?? null, turn);
    if (early) this.drawFacts(early);
    try {
      const photo = await this.facts.describe(id);
      if (turn !== this.shown) return;
      if (photo) {
        this.drawFacts(photo);
        if (!early) this.drawPicture(id, photo, turn);
      } else {
        byId("details-name").textContent = "This photograph is not there now";
        fill(byId("details-facts"));
        fill(
          byId("details-actions"),
          h("p", { class: "dim" }, "Its file was moved, or its drive is not connected."),
        );
        fill(byId("details-similar"));
      }
    } catch (error) {
      if (turn !== this.shown) return;
      byId("details-name").textContent = early ? splitName(early).file : `Photograph ${id}`;
      fill(byId("details-actions"), h("p", { class: "notice bad" }, messageOf(error)));
    }
  }

  /**
   * @param {number} id
   * @param {PhotoFacts | null} photo
   * @param {number} turn
   */
  drawPicture(id, photo, turn) {
    const frame = byId("details-picture");
    const name = photo ? printable(splitName(photo).file) : "";
    const small = h("img", { src: siteUrl(`thumbnails/${id}`), alt: name, class: "small-picture" });
    small.addEventListener("error", () => frame.classList.add("missing"));
    frame.classList.remove("missing");
    if (photo?.width && photo.height) {
      frame.style.setProperty("--ratio", `${photo.width} / ${photo.height}`);
    } else frame.style.removeProperty("--ratio");
    fill(frame, small);
    byId("details-note").textContent = "";
    if (!photo) return;
    if (photo.changed) {
      byId("details-note").textContent =
        "The file has changed since it was indexed, so the server does not hand it out.";
      return;
    }
    const large = new Image();
    large.alt = name;
    large.decoding = "async";
    large.src = siteUrl(`photos/${id}`);
    large.decode().then(
      () => turn === this.shown && fill(frame, large),
      () => {
        if (turn !== this.shown) return;
        byId("details-note").textContent =
          `This browser does not show ${photo.format ?? "this format"}: this is the thumbnail.`;
      },
    );
  }

  /** @param {PhotoFacts} photo */
  drawFacts(photo) {
    const { file, folder } = splitName(photo);
    byId("details-name").textContent = printable(file);
    /** @type {[string, string | null][]} */
    const rows = [
      ["Folder", folder],
      [photo.time_from === "file" ? "File's time" : "Taken", timeOf(photo)],
      ["Camera", photo.camera],
      ["Size", sizeOf(photo)],
      ["Score", scoreOf(this.list?.scores.get(photo.id))],
      ["Copies", copiesOf(photo)],
    ];
    fill(
      byId("details-facts"),
      rows
        .filter(([, value]) => value)
        .flatMap(([title, value]) => [h("dt", {}, title), h("dd", {}, value)]),
    );
    const copy = h("button", { type: "button" }, "Copy name");
    copy.addEventListener("click", () => void copyName(copy, shownName(photo.name)));
    const url = siteUrl(`photos/${photo.id}`);
    fill(
      byId("details-actions"),
      h(
        "button",
        {
          type: "button",
          class: "primary",
          onclick: () => this.events.onLike(photo.id, file, false),
        },
        "Similar to this",
      ),
      this.events.canAvoid()
        ? h(
            "button",
            { type: "button", onclick: () => this.events.onLike(photo.id, file, true) },
            "Not like this",
          )
        : null,
      copy,
      photo.changed
        ? null
        : [
            h(
              "a",
              { class: "button", href: url, target: "_blank", rel: "noopener" },
              "Open original",
            ),
            h("a", { class: "button", href: url, download: printable(file) }, "Download"),
          ],
    );
    this.drawSimilar(photo.id);
  }

  /** @param {number} id */
  drawSimilar(id) {
    const similar = this.list?.similar.get(id);
    if (!similar?.total) {
      fill(byId("details-similar"));
      return;
    }
    const group = new PhotoList(
      [id, ...similar.photos.map((one) => one.id)],
      new Map([
        [id, this.list?.scores.get(id) ?? NaN],
        ...similar.photos.map((one) => /** @type {[number, number]} */ ([one.id, one.score])),
      ]),
    );
    const items = similar.photos.map((one, at) => {
      const name = printable(splitName(one).file);
      return stripItem(one.id, { name, onclick: () => this.open(group, at + 1) });
    });
    fill(
      byId("details-similar"),
      h("h3", {}, countOf(similar.total, "near duplicate")),
      h("ul", { class: "strip" }, items),
    );
  }
}

/** @param {PhotoFacts} photo */
function timeOf(photo) {
  const time = shownTime(photo.time);
  const offset = photo.time_offset_minutes;
  return time && offset !== null ? `${time} (${shownOffset(offset)})` : time;
}

/** @param {PhotoFacts} photo */
function sizeOf(photo) {
  const pixels = photo.width && photo.height ? `${photo.width} × ${photo.height}` : null;
  return [pixels, formatBytes(photo.bytes), photo.format].filter(Boolean).join(" · ");
}

/** @param {number | undefined} score */
function scoreOf(score) {
  return score === undefined ? null : `${score.toFixed(3)} (cosine similarity)`;
}

/** @param {PhotoFacts} photo */
function copiesOf(photo) {
  if (!photo.copies) return null;
  const names = (photo.other_files ?? []).map((one) => shownName(`${one.root}/${one.name}`));
  const more = photo.copies - names.length;
  if (!names.length) return String(photo.copies);
  return names.join(", ") + (more > 0 ? `, and ${more} more` : "");
}

/**
 * @param {HTMLButtonElement} button
 * @param {string} name
 */
async function copyName(button, name) {
  let done = "Copied";
  try {
    await navigator.clipboard.writeText(name);
  } catch {
    // Without a secure origin there is no clipboard, but people can copy what is selected.
    const title = byId("details-name");
    getSelection()?.selectAllChildren(title);
    done = "Selected: press Ctrl+C";
  }
  const before = button.textContent;
  button.textContent = done;
  setTimeout(() => {
    button.textContent = before;
  }, 1800);
}
