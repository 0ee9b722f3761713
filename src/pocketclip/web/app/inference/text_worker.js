// The worker that runs a text tower: one session for its life. Ending it gives the memory back.

import { startSession } from "./ort_session.js";
import { Tokens } from "./tokens.js";
import { importScript } from "./vendor_script.js";
import { answerCalls } from "./worker_calls.js";
import { toUnit } from "./zero_shot.js";

/** @import { InferenceSession, Tensor } from "onnxruntime-web" */
/** @import { SessionFiles } from "./ort_session.js" */

/**
 * @typedef {object} Tokenizing
 * @property {string} library URL of `@huggingface/tokenizers`
 * @property {Uint8Array<ArrayBuffer>} tokenizer the bundle's tokenizer.json
 * @property {number} contextLength
 */

/** @typedef {SessionFiles & Tokenizing} TextTowerFiles */

/**
 * @typedef {object} Tower
 * @property {typeof Tensor} Tensor
 * @property {InferenceSession} session
 * @property {Tokens} tokens
 * @property {TextTowerFiles} about
 */

/** @type {Tower | undefined} */
let tower;

/**
 * Start the session.
 * @param {TextTowerFiles} about
 */
async function open(about) {
  const json = JSON.parse(new TextDecoder().decode(about.tokenizer));
  const tokens = new Tokens(await importScript(about.library), json, about.contextLength);
  const { Tensor, session } = await startSession(about);
  tower = { Tensor, session, tokens, about };
  return { value: null };
}

/**
 * Return the unit embedding of a text.
 * @param {{text: string}} values
 */
async function encode({ text }) {
  if (tower === undefined) throw new Error("the session was not started");
  const { Tensor, session, tokens, about } = tower;
  const { ids } = tokens.rows([text]);
  const fed = new Tensor("int64", ids, [1, about.contextLength]);
  const results = await session.run({ [about.input]: fed });
  const data = /** @type {Float32Array} */ (results[about.output].data);
  const embedding = toUnit(data, text.slice(0, 60));
  return { value: embedding, transfer: [embedding.buffer] };
}

answerCalls({ open, encode });
