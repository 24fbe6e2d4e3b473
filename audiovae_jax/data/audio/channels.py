"""Speaker layouts of audio files, and their downmix to stereo.

Speakers have the names of the bits in the channel mask of a WAVE file: `FL`, `FR`, `FC`, `LFE`, `BL`, ... The order of
the bits is called WAVE order.
"""

import numpy as np
import soundfile

_SIDE = 0.5**0.5  # -3 dB
# Gains of each speaker in left and right, in WAVE order. In the downward mixing equations of ITU-R BS.775, centre and
# surround are at -3 dB, and LFE is dropped. A single back speaker is first split into two surrounds at -3 dB. The
# standard has no speakers beside the centre or above. They are mixed like the nearest front or surround speaker.
_GAINS = {
    "FL": (1, 0), "FR": (0, 1), "FC": (_SIDE, _SIDE), "LFE": (0, 0), "BL": (_SIDE, 0), "BR": (0, _SIDE),
    "FLC": (1, 0), "FRC": (0, 1), "BC": (0.5, 0.5), "SL": (_SIDE, 0), "SR": (0, _SIDE), "TC": (0.5, 0.5),
    "TFL": (_SIDE, 0), "TFC": (0.5, 0.5), "TFR": (0, _SIDE), "TBL": (_SIDE, 0), "TBC": (0.5, 0.5), "TBR": (0, _SIDE),
}  # fmt: skip
_WAVE_ORDER = {speaker: i for i, speaker in enumerate(_GAINS)}
_NAMES = {3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def _by_count(*layouts):
    return {len(layout): layout for layout in (tuple(names.split()) for names in layouts)}


# By number of channels, in WAVE order. FLAC files are in this order (RFC 9639, section 9.1.3).
_STANDARD = _by_count(
    "FL FR FC",
    "FL FR BL BR",
    "FL FR FC BL BR",
    "FL FR FC LFE BL BR",
    "FL FR FC LFE BC SL SR",
    "FL FR FC LFE BL BR SL SR",
)
# The order of Vorbis (Vorbis I, section 4.3.9) and of Opus in Ogg (RFC 7845, section 5.1.1.2), which libsndfile keeps.
_VORBIS = _by_count(
    "FL FC FR",
    "FL FR BL BR",
    "FL FC FR BL BR",
    "FL FC FR BL BR LFE",
    "FL FC FR SL SR BC LFE",
    "FL FC FR SL SR BL BR LFE",
)
_GET_CHANNEL_MAP = 0x1100  # libsndfile's SFC_GET_CHANNEL_MAP_INFO
# By libsndfile's SF_CHANNEL_MAP_...: 1 is MONO, 2 to 4 are LEFT, RIGHT, CENTER, and 5 to 7 the same in front.
_LIBSNDFILE = (
    None, "FC", "FL", "FR", "FC", "FL", "FR", "FC", "BC", "BL", "BR", "LFE",
    "FLC", "FRC", "SL", "SR", "TC", "TFL", "TFR", "TFC", "TBL", "TBR", "TBC",
)  # fmt: skip


def of_file(file: soundfile.SoundFile) -> tuple[str, ...] | None:
    """Return the speakers of an open file's channels, in the file's order.

    The result is None for mono and stereo, and if neither the file nor its format names the speakers.
    """
    if file.channels <= 2:
        return None
    if file.subtype in ("VORBIS", "OPUS"):
        return in_vorbis(file.channels)
    if file.format == "FLAC":
        return _STANDARD.get(file.channels)
    found = soundfile._ffi.new("int[]", file.channels)
    size = soundfile._ffi.sizeof(found)
    if not soundfile._snd.sf_command(file._file, _GET_CHANNEL_MAP, found, size):
        return None
    speakers = tuple(_LIBSNDFILE[number] if number < len(_LIBSNDFILE) else None for number in found)
    # Masks with too few bits name the first channels only, and ambisonic channels are no speakers.
    return None if None in speakers else speakers


def in_mask(mask: int, channels: int) -> tuple[str, ...] | None:
    """Return the speakers of a WAVE channel mask, or None if they are not as many as the channels."""
    speakers = tuple(speaker for speaker, i in _WAVE_ORDER.items() if mask >> i & 1)
    return speakers if len(speakers) == channels and mask >> len(_WAVE_ORDER) == 0 else None


def in_vorbis(channels: int) -> tuple[str, ...] | None:
    """Return the speakers of Vorbis and Opus, in the file's order.

    The result is None for mono and stereo.
    """
    return _VORBIS.get(channels)


def named(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the names, or None for mono, stereo and unknown speakers."""
    return names if len(names) > 2 and all(name in _GAINS for name in names) else None


def assumed(channels: int) -> str:
    """Describe how a file without a channel map is read."""
    layout = _NAMES.get(channels, "its first channels")
    return f"{channels} channels and no channel map, read as {layout}"


def downmixed(audio: np.ndarray, speakers: tuple[str, ...] | None = None) -> np.ndarray:
    """Mix `[T, C]` of more than two channels down to stereo `[T, 2]` by ITU-R BS.775.

    Args:
      audio: float32.
      speakers: of its channels; by default those of a WAVE file with `C` channels. More than eight channels without
        speakers keep the first two.
    """
    speakers = _STANDARD.get(audio.shape[1]) if speakers is None else speakers
    if speakers is None:
        return audio[:, :2]
    return audio @ np.array([_GAINS[speaker] for speaker in speakers], np.float32)


def in_wave_order(audio: np.ndarray, speakers: tuple[str, ...] | None) -> np.ndarray:
    """Reorder the channels of `[T, C]` to WAVE order.

    Without `speakers`, they are in that order already.
    """
    order = _order(speakers or ())
    return audio if order == sorted(order) else audio[:, order]


def wave_speakers(speakers: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the speakers in WAVE order."""
    return None if speakers is None else tuple(speakers[i] for i in _order(speakers))


def in_vorbis_order(audio: np.ndarray) -> np.ndarray:
    """Reorder `[T, C]` of a standard layout from WAVE to Vorbis order."""
    speakers = _VORBIS.get(audio.shape[1])
    return audio if speakers is None else audio[:, np.argsort(_order(speakers))]


def _order(speakers):
    return sorted(range(len(speakers)), key=lambda i: _WAVE_ORDER[speakers[i]])
