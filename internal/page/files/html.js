// The libraries under one name each.
import { h } from './lib/preact.js';
import htm from './lib/htm.js';
import './lib/signals.js'; // components follow the signals that they read

export const html = htm.bind(h);
export { render, Fragment } from './lib/preact.js';
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from './lib/hooks.js';
export { signal, computed, batch, effect, useSignal } from './lib/signals.js';
