"""Makes the pictures and recordings in this folder, which stand for what people have: `python tests/data/make_media.py`.

`images/photos` and `recordings/words` are plain data sets; `images/odd` and `recordings/odd` hold one file for each thing that a file can be.
All are made of the formulas below, with Pillow and the standard library.
"""

import math
import shutil
import struct
import zlib
from pathlib import Path

from PIL import Image

TOP = Path(__file__).parent
WIDTH, HEIGHT = 12, 8
QUALITY: dict[str, dict[str, object]] = {"webp": {"lossless": True}} | dict.fromkeys(("jpg", "jpeg"), {"quality": 95, "subsampling": 0})


def halves(left: object, right: object, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A picture whose left half has one colour and whose right half another."""
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def png(depth: int, colour_type: int, rows: list[bytes], size: tuple[int, int] = (WIDTH, HEIGHT), before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG (ISO/IEC 15948) of rows as they are, with chunks before and after its colour values."""
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", content) + after + chunk(b"IEND", b"")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def make_images(folder: Path) -> None:
    for number in range(5):
        for name, colour in (("cat", (250, 30 * number, 0)), ("dog", (0, 30 * number, 250))):
            (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
            halves(colour, (120, 120, 120)).save(folder / "photos" / name / f"{number}.png")
    odd = folder / "odd"
    odd.mkdir()
    red, blue = (200, 0, 0), (0, 0, 200)
    plain = halves(red, blue)
    for suffix in ("jpeg", "webp", "bmp", "gif", "tif", "ppm"):
        plain.save(odd / f"plain.{suffix}", **QUALITY.get(suffix, {}))
    plain.save(odd / "jpeg_inside.png", "JPEG", **QUALITY["jpg"])
    lying = plain.transpose(Image.Transpose.ROTATE_90)  # as a camera saves it that was turned, with a tag that says so
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "tif"):
        lying.save(odd / f"turned.{suffix}", exif=exif, **QUALITY.get(suffix, {}))
    lying.save(odd / "damaged_exif.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\xff\xff", quality=95)
    late = chunk(b"eXIf", exif.tobytes()[6:])
    lying_rows = [lying.tobytes()[3 * HEIGHT * row : 3 * HEIGHT * (row + 1)] for row in range(WIDTH)]
    (odd / "late_exif.png").write_bytes(png(8, 2, lying_rows, lying.size, after=late))
    rows = [plain.tobytes()[3 * WIDTH * row : 3 * WIDTH * (row + 1)] for row in range(HEIGHT)]
    (odd / "damaged_exif.png").write_bytes(png(8, 2, rows, before=chunk(b"eXIf", b"no EXIF data")))
    halves((200, 0, 0, 255), (0, 0, 0, 0), "RGBA").save(odd / "see_through.png")
    halves((200, 0, 0, 255), (0, 0, 0, 0), "RGBA").save(odd / "see_through.webp", lossless=True, exact=True)
    halves((100, 255), (0, 0), "LA").save(odd / "see_through_grey.png")
    palette = halves(0, 1, "P")
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.save(odd / "see_through_palette.png", transparency=1)
    palette.save(odd / "see_through.gif", transparency=1)
    (odd / "see_through_colour.png").write_bytes(
        png(8, 2, [bytes(red) * 6 + bytes(18)] * HEIGHT, before=chunk(b"tRNS", struct.pack(">HHH", 0, 0, 0)))
    )
    ramp = struct.pack(f">{WIDTH}H", *(5000 * place for place in range(WIDTH)))
    (odd / "deep_grey.png").write_bytes(png(16, 0, [ramp] * HEIGHT))
    (odd / "deep_grey_see_through.png").write_bytes(png(16, 0, [ramp] * HEIGHT, before=chunk(b"tRNS", struct.pack(">H", 5000))))
    colours = struct.pack(f">{3 * WIDTH}H", *(value for place in range(WIDTH) for value in (5000 * place, 0, 65535)))
    (odd / "deep_colour.png").write_bytes(png(16, 2, [colours] * HEIGHT))
    Image.new("F", (WIDTH, HEIGHT), 0.5).save(odd / "float.tif")
    Image.new("I", (WIDTH, HEIGHT), -5).save(odd / "negative.tif")
    plain.convert("CMYK").save(odd / "print.jpg", quality=95)
    plain.convert("LAB").save(odd / "lab.tif")
    frames = {"save_all": True, "append_images": [halves(blue, red)]}
    plain.save(odd / "moving.gif", **frames)
    plain.save(odd / "pages.tif", **frames)
    (odd / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    (odd / "text.png").write_text("This is no picture.\n")
    (odd / "cut.jpg").write_bytes((odd / "print.jpg").read_bytes()[:-40])
    (odd / "huge.png").write_bytes(png(8, 0, [b""], size=(30000, 30000)))
    (odd / "large.png").write_bytes(png(8, 0, [b""], size=(10000, 9500)))
    halves(red, blue, size=(40, 8)).save(odd / "wide.png")


def tone(hertz: float, rate: int = 8000, seconds: float = 0.05) -> list[float]:
    """A tone at half of full scale."""
    return [0.5 * math.sin(2 * math.pi * hertz * place / rate) for place in range(round(seconds * rate))]


def wav(data: bytes, bits: int = 16, rate: int = 8000, channels: int = 1, kind: int = 1, extension: bytes = b"", size: int | None = None) -> bytes:
    """A WAV file (Microsoft 2001, "Multiple channel audio data and WAVE files"), with another size in its header where one is given."""
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits) + extension
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data) if size is None else size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def packed(form: str, values: list[float], scale: float) -> bytes:
    return struct.pack(f"<{len(values)}{form}", *(round(scale * value) if form in "bBhi" else scale * value for value in values))


def make_recordings(folder: Path) -> None:
    for number in range(5):
        for name, hertz in (("yes", 500), ("no", 1500)):
            (folder / "words" / name).mkdir(parents=True, exist_ok=True)
            (folder / "words" / name / f"{number}.wav").write_bytes(wav(packed("h", tone(hertz + 20 * number), 2**15)))
    odd = folder / "odd"
    odd.mkdir()
    values = tone(1000)
    sixteen = packed("h", values, 2**15)
    extensible = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    deep = b"".join(struct.pack("<i", round(2**23 * value))[:3] for value in values)
    stereo = [value for one in values for value in (1.5 * one, 0.5 * one)]
    files = {
        "extensible": wav(sixteen, kind=0xFFFE, extension=extensible),
        "bits8": wav(bytes(128 + round(128 * value) for value in values), 8),
        "bits24": wav(deep, 24),
        "bits32": wav(packed("i", values, 2**31), 32),
        "float32": wav(packed("f", values, 1.0), 32, kind=3),
        "float64": wav(packed("d", values, 1.0), 64, kind=3),
        "float_beyond_one": wav(packed("f", values, 32768.0), 32, kind=3),
        "stereo": wav(packed("h", stereo, 2**15), channels=2),
        "rate16000": wav(packed("h", tone(1000, 16000), 2**15), rate=16000),
        "rate44100": wav(packed("h", tone(1000, 44100), 2**15), rate=44100),
        "unknown_length": wav(sixteen, size=0xFFFFFFFF),
        "long": wav(bytes(128 + round(128 * value) for value in tone(1000, seconds=1.2)), 8),
        "silent": wav(bytes(800)),
        "one_sample": wav(sixteen[2:4]),
        "empty": wav(b""),
        "alaw": wav(bytes(400), 8, kind=6),
        "not_a_number": wav(packed("f", [0.0, math.nan, 0.5], 1.0), 32, kind=3),
        "cut": wav(sixteen)[:-300],
        "text": b"This is no recording.\n",
        "mp3_inside": b"ID3\x04" + bytes(60),
    }
    for name, content in files.items():
        (odd / f"{name}.wav").write_bytes(content)
    (odd / "song.mp3").write_bytes(b"ID3\x04" + bytes(60))


if __name__ == "__main__":
    for name, make in (("images", make_images), ("recordings", make_recordings)):
        shutil.rmtree(TOP / name, ignore_errors=True)
        make(TOP / name)
