"""Image formats: one table of those that are read, for listing and decoding, and some others."""

FORMATS = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".dib": "DIB",
    ".gif": "GIF",
    ".j2c": "JPEG2000",
    ".j2k": "JPEG2000",
    ".jfif": "JPEG",
    ".jp2": "JPEG2000",
    ".jpe": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".jpx": "JPEG2000",
    ".mpo": "JPEG",
    ".pbm": "PPM",
    ".pfm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".pnm": "PPM",
    ".ppm": "PPM",
    ".tga": "TGA",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""Extensions of image files in lower case, each with Pillow's name for its decoder.

Other decoders of Pillow are never used.
"""

CAMERA = frozenset(
    {
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".heic", ".heics"),
        *(".heif", ".hif", ".iiq", ".jxl", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf"),
        *(".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f"),
    }
)
"""Extensions, in lower case, of formats of cameras and phones that are not read.

Many are kinds of TIFF, of which Pillow would read the small preview in place of the photograph.
"""
