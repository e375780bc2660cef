"""Image formats that are read: one table for listing files and for decoding them."""

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
