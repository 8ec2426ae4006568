// Charts: uPlot with the colours of the page.
import { html, useEffect, useRef } from './html.js';
import uPlot from './lib/uplot.js';
import { lang, t } from './words.js';
import { theme } from './theme.js';

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// steps are those of an axis of whole numbers.
const steps = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6];

// pad leaves room for half a bar at either end.
function pad(at, low, high) {
	const half = at.length > 1 ? (at[at.length - 1] - at[at.length - 2]) / 2 : 1800;
	return [low - half, high + half];
}

// room is how wide an axis is, in pixels: its longest label, the marks beside it, and not much less than others, so that charts look alike.
function room(plot, labels, i, turn) {
	const axis = plot.axes[i];
	if (turn > 1) return axis._size; // it was measured, and must come to rest
	plot.ctx.save();
	plot.ctx.font = axis.font[0];
	const wide = Math.max(0, ...(labels || []).map((label) => plot.ctx.measureText(label).width)) / devicePixelRatio;
	plot.ctx.restore();
	return Math.max(66, Math.ceil(wide) + axis.ticks.size + axis.gap + 1);
}

// stamps are the labels of an axis of time: the hour within a day, or the day.
function stamps(format) {
	return (_, splits) => {
		const short = format.hour && splits[splits.length - 1] - splits[0] < 600;
		const f = new Intl.DateTimeFormat(lang.value === 'zh' ? 'zh-CN' : undefined, short ? { ...format, second: '2-digit' } : format);
		return splits.map((s) => f.format(s * 1000));
	};
}

// Chart draws series over time: data is [times in seconds, values…], series [{name, colour}]. What it shows is said in words beside it,
// for those who do not see it.
export function Chart({ title, says, data, series, format, whole = false, bars = false, stamp = { hour: '2-digit', minute: '2-digit' }, space = 70 }) {
	const box = useRef(null);
	const plot = useRef(null);
	const look = theme.value;
	const words = lang.value;
	useEffect(() => {
		const grid = { stroke: colour('--line'), width: 1 };
		const axis = { stroke: colour('--dim'), grid, ticks: { ...grid, size: 4 }, font: '11px system-ui, sans-serif' };
		const options = {
			width: box.current.clientWidth || 300,
			height: 160,
			cursor: { y: false, points: { size: 6 } },
			legend: { show: true, live: true },
			scales: { x: { time: true, range: bars ? (u, low, high) => pad(u.data[0], low, high) : undefined }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
			axes: [
				{ ...axis, size: 30, values: stamps(stamp), space },
				{ ...axis, size: room, incrs: whole ? steps : undefined, values: (_, splits) => splits.map((v) => (v < 0 ? '' : format(v))), space: 34 },
			],
			series: [
				{ label: t('usage.period'), value: (_, v) => (v === null || v === undefined ? '' : new Intl.DateTimeFormat(words === 'zh' ? 'zh-CN' : undefined, bars ? stamp : { timeStyle: 'medium' }).format(v * 1000)) },
				...series.map((s, i) => ({
					label: s.name,
					stroke: colour(s.colour),
					fill: colour(s.colour + (bars ? '' : '-fill')),
					width: bars ? 1 : 1.5,
					dash: s.dash,
					points: { show: false },
					paths: bars ? uPlot.paths.bars({ size: [0.36, 26], align: i === 0 ? -1 : 1 }) : undefined,
					value: (_, v) => (v === null || v === undefined ? '–' : format(v)),
				})),
			],
		};
		const p = new uPlot(options, data, box.current);
		plot.current = p;
		const sized = new ResizeObserver(() => {
			const width = box.current?.clientWidth;
			if (width && width !== p.width) p.setSize({ width, height: options.height });
		});
		sized.observe(box.current);
		return () => {
			sized.disconnect();
			p.destroy();
			plot.current = null;
		};
	}, [look, words, bars, series.map((s) => s.name).join()]);
	useEffect(() => plot.current?.setData(data), [data]);
	return html`<figure class="chart">
		<figcaption><strong>${title}</strong> <span>${says}</span></figcaption>
		<div ref=${box} class="plot" aria-hidden="true"></div>
	</figure>`;
}
