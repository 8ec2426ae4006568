// A table that stays fluent however many rows it has: those out of sight are not made.
import { html, useLayoutEffect, useRef, useState } from './html.js';
import { Virtualizer, elementScroll, observeElementOffset, observeElementRect } from './lib/virtual-core.js';

function useVirtualizer(options) {
	const [, again] = useState(0);
	const all = { observeElementRect, observeElementOffset, scrollToFn: elementScroll, overscan: 8, ...options, onChange: () => again((n) => n + 1) };
	const [virtual] = useState(() => new Virtualizer(all));
	virtual.setOptions(all);
	useLayoutEffect(() => virtual._didMount(), []);
	useLayoutEffect(() => virtual._willUpdate());
	return virtual;
}

// So many rows are shown whole; a longer table scrolls by itself.
const short = 40;

// Table shows rows in columns.
//
//	columns   [{id, head, title, cell(row), cls, sort}]: of class num are numbers; wide ones are not shown on a narrow screen
//	count     how many rows there are; row(i) returns one, or undefined for one that is on its way
//	keyOf     what is a row's own, so that its element follows it
//	sort      {by, down} and onSort(id), where columns can be sorted by
//	onRange   hears which rows are in sight
//	mark      a class for a row
export function Table({ label, columns, count, row, keyOf, sort, onSort, onRange, onHold, mark, height = 37, measured = false, id }) {
	const box = useRef(null);
	const virtual = useVirtualizer({ count, getScrollElement: () => box.current, estimateSize: () => height, getItemKey: measured ? (i) => (row(i) ? keyOf(row(i)) : i) : undefined });
	const items = virtual.getVirtualItems();
	const first = items.length ? items[0].index : 0;
	const last = items.length ? items[items.length - 1].index + 1 : 0;
	useLayoutEffect(() => onRange?.(first, last), [first, last]);
	const above = items.length ? items[0].start : 0;
	const below = items.length ? virtual.getTotalSize() - items[items.length - 1].end : 0;
	const hold = onHold && {
		onPointerEnter: (e) => e.pointerType === 'mouse' && onHold(true),
		onPointerLeave: (e) => onHold(e.currentTarget.contains(document.activeElement) && document.activeElement !== box.current),
		onFocusIn: (e) => e.target !== box.current && onHold(true),
		onFocusOut: (e) => !e.currentTarget.contains(e.relatedTarget) && onHold(false),
	};
	const head = (c) => {
		const is = sort && sort.by === c.id;
		const order = c.sort ? (is ? (sort.down ? 'descending' : 'ascending') : 'none') : undefined;
		const name = c.hidden ? html`<span class="unseen">${c.head}</span>` : c.head;
		return html`<th key=${c.id} scope="col" class=${`c-${c.id} ${c.cls || ''}`} title=${c.title} aria-sort=${order}>
			${c.sort ? html`<button type="button" class="sort" onClick=${() => onSort(c.id)}>${is && html`<span aria-hidden="true" class="arrow">${sort.down ? '▾' : '▴'}</span>`}${name}</button>` : name}
		</th>`;
	};
	return html`<div class=${'table' + (count > short ? ' long' : '')} ref=${box} id=${id} tabindex="0" role="region" aria-label=${label} ...${hold}>
		<table aria-rowcount=${count + 1}>
			<thead><tr aria-rowindex="1">${columns.map(head)}</tr></thead>
			<tbody>
				${above > 0 && html`<tr key="above" aria-hidden="true" class="gap"><td style=${{ height: above + 'px' }}></td></tr>`}
				${items.map((item) => {
					const r = row(item.index);
					if (!r) return html`<tr key=${'at ' + item.index} class="waits"><td>…</td></tr>`;
					return html`<tr key=${keyOf(r)} data-index=${item.index} aria-rowindex=${item.index + 2} class=${mark?.(r)} ref=${measured ? virtual.measureElement : undefined}>
						${columns.map((c) => (c.header ? html`<th key=${c.id} scope="row" class=${c.cls}>${c.cell(r)}</th>` : html`<td key=${c.id} class=${c.cls}>${c.cell(r)}</td>`))}
					</tr>`;
				})}
				${below > 0 && html`<tr key="below" aria-hidden="true" class="gap"><td style=${{ height: below + 'px' }}></td></tr>`}
			</tbody>
		</table>
	</div>`;
}
