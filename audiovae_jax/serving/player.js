// One player for recordings that are compared: all play together, and all but the selected one are muted.
const DRAG = 5; // pixels from a click to a selection
const DRIFT = 0.03; // seconds that two recordings may be apart

class AudioPlayer extends HTMLElement {
  connectedCallback() {
    this.active = Number(this.querySelector('.switch [aria-pressed="true"]').dataset.lane);
    this.loop = null;
    if (this.controller) this.controller.abort();
    const { signal } = (this.controller = new AbortController());
    const on = (name, handle, options) => this.addEventListener(name, handle, { signal, ...options });
    on("click", (event) => this.clicked(event));
    on("pointerdown", (event) => this.grabbed(event));
    on("pointermove", (event) => this.dragged(event));
    on("pointerup", (event) => this.released(event));
    on("pointercancel", () => (this.grab = null));
    on("keydown", (event) => this.pressed(event));
    // Events of audio elements do not bubble.
    on("timeupdate", () => this.advance(), { capture: true });
    on("ended", (event) => this.ended(event), { capture: true });
    on("error", (event) => this.failed(event), { capture: true });
    this.show();
  }

  disconnectedCallback() {
    this.pause();
    this.controller.abort();
  }

  get seconds() { return Number(this.dataset.seconds); }
  get audios() { return [...this.querySelectorAll("audio")]; }
  get audio() { return this.audios[this.active]; }
  get isPlaying() { return this.classList.contains("playing"); }

  play() {
    for (const other of document.querySelectorAll("audio-player")) if (other !== this) other.pause();
    this.classList.add("playing");
    if (this.audio.ended || this.audio.currentTime >= this.length(this.audio)) this.seek(this.loop ? this.loop[0] : 0);
    for (const audio of this.audios) this.start(audio, this.audio.currentTime);
    const frame = () => { if (this.isPlaying) { this.advance(); requestAnimationFrame(frame); } };
    frame();
  }

  pause() {
    this.classList.remove("playing");
    for (const audio of this.audios) audio.pause();
  }

  start(audio, time) {
    audio.muted = audio !== this.audio;
    if (Math.abs(audio.currentTime - time) > DRIFT) audio.currentTime = Math.min(time, this.length(audio));
    if (this.isPlaying && time < this.length(audio)) audio.play().catch(() => {});
  }

  seek(time) {
    const at = Math.max(0, Math.min(time, this.seconds));
    for (const audio of this.audios) {
      audio.currentTime = Math.min(at, this.length(audio));
      if (this.isPlaying) this.start(audio, at);
    }
    this.show();
  }

  select(lane) {
    if (!(lane in this.audios)) return;
    const time = this.audio.currentTime;
    this.active = lane;
    for (const audio of this.audios) this.start(audio, time);
    if (time >= this.length(this.audio)) this.pause();
    this.show();
  }

  repeat(start, end) {
    this.loop = end - start > 0.05 ? [start, end] : null;
    this.show();
  }

  advance() {
    if (this.isPlaying && this.loop && this.audio.currentTime >= this.loop[1]) this.seek(this.loop[0]);
    this.show();
  }

  ended({ target }) {
    if (target !== this.audio) return;
    if (this.loop) this.seek(this.loop[0]);
    else this.pause();
    this.show();
  }

  failed({ target }) {
    if (target.tagName === "AUDIO") target.closest(".lane").classList.add("failed");
  }

  length(audio) { return Number.isFinite(audio.duration) ? audio.duration : this.seconds; }

  show() {
    const percent = (time) => `${(100 * time) / this.seconds}%`;
    const time = this.audio.currentTime;
    this.querySelector("output").textContent = clock(time);
    this.querySelector(".playhead").style.left = percent(time);
    for (const button of this.querySelectorAll(".switch button"))
      button.setAttribute("aria-pressed", Number(button.dataset.lane) === this.active);
    for (const lane of this.querySelectorAll(".lane")) lane.toggleAttribute("data-active", Number(lane.dataset.lane) === this.active);
    const [chip, band] = [this.querySelector(".loop"), this.querySelector(".selection")];
    chip.hidden = band.hidden = !this.loop;
    if (!this.loop) return;
    const [start, end] = this.loop;
    chip.querySelector("span").textContent = `${clock(start)}–${clock(end)}`;
    Object.assign(band.style, { left: percent(start), width: percent(end - start) });
  }

  clicked({ target }) {
    const button = target.closest("button");
    if (!button) return;
    if (button.matches(".play")) this.isPlaying ? this.pause() : this.play();
    else if (button.matches(".loop")) this.repeat(0, 0);
    else this.select(Number(button.dataset.lane));
  }

  at(event) {
    const { left, width } = this.querySelector(".lanes").getBoundingClientRect();
    return Math.max(0, Math.min(1, (event.clientX - left) / width)) * this.seconds;
  }

  grabbed(event) {
    if (event.button || !event.target.closest(".lanes")) return;
    this.grab = { x: event.clientX, time: this.at(event), lane: event.target.closest(".lane"), moved: false };
    this.setPointerCapture(event.pointerId);
  }

  dragged(event) {
    if (!this.grab) return;
    this.grab.moved ||= Math.abs(event.clientX - this.grab.x) > DRAG;
    if (this.grab.moved) this.repeat(...[this.grab.time, this.at(event)].sort((a, b) => a - b));
  }

  released() {
    if (!this.grab) return;
    const { time, lane, moved } = this.grab;
    this.grab = null;
    if (lane) this.select(Number(lane.dataset.lane));
    if (!moved && this.loop && (time < this.loop[0] || time > this.loop[1])) this.repeat(0, 0);
    this.seek(moved && this.loop ? this.loop[0] : time);
  }

  pressed(event) {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const time = this.audio.currentTime;
    const [start, end] = this.loop || [0, this.seconds];
    if (key === " " && !target.closest("button")) this.isPlaying ? this.pause() : this.play();
    else if (key === "ArrowLeft") this.seek(time - 1);
    else if (key === "ArrowRight") this.seek(time + 1);
    else if (key === "[") this.repeat(time, end);
    else if (key === "]") this.repeat(start, time);
    else if (key === "Escape") this.repeat(0, 0);
    else if (key >= "1" && key <= "9") this.select(Number(key) - 1);
    else return;
    event.preventDefault();
  }
}

function clock(seconds) {
  const tenths = Math.floor(10 * seconds);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

customElements.define("audio-player", AudioPlayer);
