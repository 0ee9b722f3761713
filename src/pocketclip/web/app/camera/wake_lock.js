// Keeps the screen on while a camera runs, where the browser can.

let wanted = false;
/** @type {WakeLockSentinel | null} */
let lock = null;

/**
 * Keep the screen on, or let it go dark again.
 * @param {boolean} on
 */
export function keepAwake(on) {
  wanted = on;
  void update();
}

async function update() {
  if (!wanted) {
    const held = lock;
    lock = null;
    await held?.release().catch(() => undefined);
    return;
  }
  if (lock !== null || document.hidden || !("wakeLock" in navigator)) return;
  try {
    const held = await navigator.wakeLock.request("screen");
    if (!wanted || lock !== null) return void held.release();
    lock = held;
    held.addEventListener("release", () => {
      if (lock === held) lock = null;
    });
  } catch {
    // Refused, as with a low battery: the camera works without.
  }
}

// Browsers take the lock back while the page is hidden.
document.addEventListener("visibilitychange", () => void update());
