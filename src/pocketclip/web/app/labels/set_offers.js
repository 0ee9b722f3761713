// The label sets that an editor offers, and the one that is being read.

import { quoted } from "./label_list.js";
import { explained } from "./label_texts.js";
import { serverSets, siteSets } from "./offered_sets.js";

/** @typedef {import("./editor.js").Editor} Editor */
/** @typedef {import("./offered_sets.js").OfferedSet} OfferedSet */
/** @typedef {import("./offered_sets.js").SiteSet} SiteSet */

export class SetOffers {
  /** @type {OfferedSet[]} of the server, and of the site for the model */ all = [];
  /** @type {OfferedSet[]} */ #ofServer = [];
  /** @type {string | null} that was used last, and was not offered yet */ #wanted = null;
  #turn = 0;

  /** @param {Editor} editor */
  constructor(editor) {
    this.editor = editor;
  }

  /**
   * Find the server's label sets, and use the one that is wanted once it is offered.
   * @param {string | null} wanted
   */
  async start(wanted) {
    this.all = this.#ofServer = await serverSets();
    this.#wanted = wanted;
  }

  /**
   * Offer those of a model's site too, in place of the server's with the same names.
   * @param {SiteSet[]} sets
   */
  setSite(sets) {
    const ofSite = siteSets(sets);
    const names = new Set(ofSite.map((one) => one.name));
    this.all = [...this.#ofServer.filter((one) => !names.has(one.name)), ...ofSite];
  }

  /** Use the label set that was used last, if it is offered now. */
  async useWanted() {
    const wanted = this.all.find((one) => one.name === this.#wanted);
    if (wanted !== undefined) await this.use(wanted);
  }

  /**
   * Read and use a label set, unless people choose something else meanwhile.
   * @param {OfferedSet} offered
   */
  async use(offered) {
    this.giveUp();
    const turn = this.#turn;
    this.editor.tell(`Reading ${quoted(offered.name)} …`);
    try {
      const set = await offered.read();
      if (turn === this.#turn) this.editor.useSet(offered.name, set);
    } catch (error) {
      if (turn === this.#turn) this.editor.tell(explained(error));
    }
  }

  /** Something else is used: what is being read, or was wanted, is not used any more. */
  giveUp() {
    this.#turn += 1;
    this.#wanted = null;
  }
}
