#!/usr/bin/env python3
"""A second implementation of .tl v1, from spec/tl-v1.md alone: Python 3.9+, standard library only.

    tl.py check FILE [BLOBS]       check every rule, print the root; BLOBS: folder of tensors left out
    tl.py dump  FILE [BLOBS]       print {"root", "storage", "manifest", "tensors": {name: hex}} as JSON
    tl.py build SPEC.json OUT.tl   write the canonical file of JSON like a dump's: names, order, method
                                   and digests are made anew; "thin": true leaves seeded tensors out
"""
import hashlib, json, math, os, re, struct, sys

FLOATS = {"F32": ("I", 0x7F800000), "F16": ("H", 0x7C00), "BF16": ("H", 0x7F80)}  # struct code, exponent bits
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
PRESETS = [("lora", "AB", False), ("vera", "uv", True), ("tl1", "A", True), ("tl2", "Auv", True),
           ("tl3", "B", True), ("tl4", "Bu", True), ("tl5", "AB", True), ("tl6", "ABuv", True)]
FACTORS, FEATURES = "ABCuv", {"coded", "core", "experts", "i8-rows", "rows"}
KINDS = {"linear": False, "conv1d": False, "embedding": False, "parameter": True, "parameter_transposed": True}

def need(ok, message):
    if not ok:
        raise ValueError(message)

def canonical(value, sort=True):
    """The canonical bytes. Readers compare with them, so duplicate keys, floats, spaces or escapes do not pass."""
    return json.dumps(value, sort_keys=sort, separators=(",", ":"), ensure_ascii=False).encode()

def sha(data):
    return hashlib.sha256(data).hexdigest()

def fields(value, optional, **types):
    """value is an object with these keys and no other; [T] is an array of T, None any type."""
    need(isinstance(value, dict) and set(value) <= set(types), f"unknown keys among {list(value)[:20]}")
    for key, of in types.items():
        need(key in value or key in optional, f"{key} is missing")
        items = value.get(key, []) if isinstance(of, list) else [value[key]] if key in value else []
        of = of[0] if isinstance(of, list) else of
        need(isinstance(items, list) and all(of in (None, type(x)) for x in items), f"{key} has the wrong type")
        need(of is not int or all(0 <= x < 2**64 for x in items), f"{key} is out of range")
# ---- chapter 5: the manifest ----
def alpha(spelling):
    """The f64 of an alpha: an integer below 2^53, else "0x" and the 16 hex digits of its bits."""
    if type(spelling) in (int, float):
        return float(spelling)
    need(isinstance(spelling, str) and re.fullmatch("0x[0-9a-f]{16}", spelling), f"alpha {spelling}")
    return struct.unpack(">d", bytes.fromhex(spelling[2:]))[0]

def spell(value):
    return int(value) if 0 <= value < 2**53 and value == int(value) else "0x" + struct.pack(">d", value).hex()

def check_scaling(item):
    value, rank = alpha(item["alpha"]), item["rank"]
    need(rank > 0 and 0 < value < math.inf, f"alpha {value}, rank {rank}")
    s = value / {"alpha/rank": rank, "alpha/sqrt(rank)": math.sqrt(rank)}[item["scaling"]]
    need(struct.unpack("<f", struct.pack("<f", s))[0] > 0, "the scaling underflows")

def check_name(name, layered=False):
    part = "[A-Za-z0-9_-]+"
    pattern = rf"({part}\.)*{{}}(\.{part})*".replace("{}", r"\{\}") if layered else rf"{part}(\.{part})*"
    need(len(name) <= 512 and re.fullmatch(pattern, name), f"bad name {name[:600]!r}")

def check_tensor(t):
    fields(t, ["coded", "scales", "seed"], coded=int, dtype=str, scales=str, shape=[int], sha256=str, seed=dict)
    need(("scales" in t) == (t["dtype"] == "I8"), "I8 has scales, and nothing else has")
    need(t["dtype"] in WIDTHS and all(t["shape"]) and math.prod(t["shape"]) * WIDTHS[t["dtype"]] <= 4 << 30, f"{t['dtype']} {t['shape'][:9]}")
    need("coded" not in t or t["dtype"] == "F32" and t["shape"] and 0 < t["coded"] <= 4 << 30 and "seed" not in t, "not a coded tensor")
    need(re.fullmatch("[0-9a-f]{64}", t["sha256"]), "sha256 is not 64 lower-case hex digits")
    if "seed" in t:
        fields(t["seed"], [], generator=str, key=str, step=str)
        need(t["dtype"] in FLOATS and t["seed"]["generator"] == "chacha20-uniform/1" and re.fullmatch("[0-9a-f]{64}", t["seed"]["key"])
             and re.fullmatch("[0-9a-f]{8}", t["seed"]["step"]) and 0 < step(t) * 2.0**23 < 2.0**128
             and math.prod(t["shape"]) <= 2**28, "bad seed")

def stored(t):
    """dtype and shape of what is stored."""
    return ("U8", [t["coded"]]) if "coded" in t else (t["dtype"], t["shape"])

def byte_len(t):
    return t["coded"] if "coded" in t else math.prod(t["shape"]) * WIDTHS[t["dtype"]]

def check_group(g, tensors):
    fields(g, ["experts", "layers", "C", "u", "v"], A=str, B=str, C=str, u=str, v=str, alpha=None, experts=int, layers=[int], rank=int, scaling=str,
           targets=[dict], trained=[str], **{"in": int})
    layers, rank, parts = g.get("layers"), g["rank"], [p for p in FACTORS if p in g]
    ascending = sorted(set(layers or [0]))
    need(layers is None or layers == ascending and len(layers) <= 4096 and layers[-1] < 4096, "bad layers")
    for t in g["targets"]:
        fields(t, ["kind"], kind=str, module=str, out=int)
        check_name(t["module"], layers is not None)
        kind = t.get("kind", "linear")
        need(t["out"] > 0 and kind in KINDS and ("kind" in t) == (kind != "linear"), f"bad target {t}")
        need("experts" not in g if not KINDS[kind] else kind == "parameter" or "experts" in g, f"experts and {t}")
    need(1 <= g.get("experts", 1) <= 4096, "bad experts")
    instances = len(layers or [0]) * g.get("experts", 1)
    axes = ([len(layers)] if layers else []) + ([instances] if layers or "experts" in g else [])
    need(0 < rank <= 65536 and g["in"] > 0 and g["targets"], "no rank, inputs or targets")
    need(g["trained"] == [p for p in parts if p in g["trained"]], "`trained` is not a sub-list of the factors")
    need(not ("C" in g and "u" in g), "C and u take one place")
    check_scaling(g)
    out = sum(t["out"] for t in g["targets"])
    for part in parts:
        need(g[part] in tensors, f"{g[part]} is not described")
        shape = tensors[g[part]]["shape"]
        if len(shape) == 3 if part in "AB" else axes:
            need(shape and shape[0] in axes, f"the layers and experts of {part}")
            shape = shape[1:]
        fits = {"A": lambda r, n: r == rank and n >= g["in"], "B": lambda m, r: m >= out and r == rank,
                "C": lambda *sides: sides == (rank, rank), "u": lambda r: r == rank, "v": lambda m: m == out}[part]
        need(len(shape) == (2 if part in "ABC" else 1) and fits(*shape), f"{part}: {shape}, rank {rank}, out {out}")

def check_manifest(m):
    """Every rule but those of canonical form: encode() makes that, for a reader to compare."""
    need(isinstance(m, dict) and m.get("tl") == 1 and set(m["requires"]) <= FEATURES, "Unsupported: a version or feature")
    fields(m, ["base", "extras", "provenance", "task"], base=dict, extras=[dict], groups=[dict], method=str,
           provenance=dict, requires=[str], task=str, tensors=dict, tl=int)
    base, provenance, extras = (m.get(key, {}) for key in ("base", "provenance", "extras"))
    fields(base, ["name", "revision", "weights"], name=str, revision=str, weights=str)
    need(re.fullmatch("[0-9a-f]{64}", base.get("weights", "0" * 64)), "bad base.weights")
    texts = [*provenance, *provenance.values(), *base.values(), m.get("task", "")]
    need(all(isinstance(text, str) and len(text.encode()) <= 65536 for text in texts), "no text, or too long a text")
    need(len(m["tensors"]) <= 65536 and len(m["groups"]) <= 262144 and len(provenance) <= 1024, "too many entries")
    for t in m["tensors"].values():
        check_tensor(t)
    for t in (t for t in m["tensors"].values() if "scales" in t):
        scales = m["tensors"][t["scales"]]
        need(scales["dtype"] == "F32" and "coded" not in scales and scales["shape"] == t["shape"][:-1] and t["shape"], "not the scales of I8")
    for g in m["groups"]:
        check_group(g, m["tensors"])
    need(sum(len(g.get("layers", [0])) * g.get("experts", 1) * len(g["targets"]) for g in m["groups"]) <= 262144, "too many modules")
    paths = [weight(t).replace("{}", str(n)) for g in m["groups"] for n in g.get("layers", [0]) for t in g["targets"]]
    need(len(set(paths)) == len(paths), "a module is adapted twice")
    for x in extras:
        scaled = dict(alpha=None, rank=int, scaling=str) if x.get("role") == "add_bias" else {}
        picked = dict(rows=[int]) if x.get("role") == "rows" else {}
        fields(x, [], name=str, role=str, tensor=str, **scaled, **picked)
        need(x["role"] in ("replace", "bias", "base_layer", "add_bias", "rows") and m["tensors"][x["tensor"]]["dtype"] != "I8" and "coded" not in m["tensors"][x["tensor"]], f"extra {x}")
        check_name(x["name"])
        if scaled:
            check_scaling(x)
        if picked:
            rows, shape = x["rows"], m["tensors"][x["tensor"]]["shape"]
            need(len(shape) == 2 and shape[0] == len(rows) > 0 and rows == sorted(set(rows)) and rows[-1] < 2**32, f"rows of {x}")
    need(len({x["name"] for x in extras}) == len(extras), "a tensor is replaced twice")

def weight(t):
    return t["module"] + ("" if KINDS[t.get("kind", "linear")] else ".weight")

def order(g):
    return [t["module"] for t in g["targets"]], "layers" in g, g.get("layers", [])

def method(groups, tensors):
    trained = {"".join(g["trained"]) for g in groups}
    tied = {all(len(tensors[g[p]]["shape"]) == 2 for p in "AB") for g in groups if "layers" in g}
    frozen_vectors = any(p in g and p not in g["trained"] for g in groups for p in "Cuv")
    fits = [name for name, trains, ties in PRESETS if trained == {trains} and tied <= {ties}]
    return fits[0] if fits and not frozen_vectors else "custom"

def features(m):
    i8 = any(t["dtype"] == "I8" for t in m["tensors"].values())
    rows = any(x["role"] == "rows" for x in m["extras"])
    experts = any("experts" in g or any(KINDS[t.get("kind", "linear")] for t in g["targets"]) for g in m["groups"])
    coded = any("coded" in t for t in m["tensors"].values())
    return ["coded"] * coded + ["core"] * any("C" in g for g in m["groups"]) + ["experts"] * experts + ["i8-rows"] * i8 + ["rows"] * rows

def encode(spec, data):
    """(canonical manifest, {name: (entry, bytes)}) of a manifest with any names and order, and its bytes."""
    m = {key: spec[key] for key in ("base", "provenance", "task") if spec.get(key) or key == "task" in spec}
    m.update(groups=[dict(g) for g in sorted(spec["groups"], key=order)], tl=1, tensors={},
             extras=[dict(x) for x in sorted(spec.get("extras", []), key=lambda x: x["name"])],
             method=method(spec["groups"], spec["tensors"]))
    contents, tensors = {}, {}

    def place(name, own, factor):
        """The name of a tensor whose use has the name `own`: that of the first use of its content."""
        entry = {**spec["tensors"][name]}
        if "scales" in entry:
            entry["scales"] = place(entry["scales"], own + ".scales", False)
        raw = data[name] if name in data else generate(entry)
        entry["sha256"] = sha(raw)
        if not factor:
            entry.pop("seed", None)  # recipes belong to factors
        name = contents.setdefault((entry["dtype"], *entry["shape"], entry["sha256"], entry.get("scales"), entry.get("coded")), own)
        if name == own or "seed" not in tensors[name][0]:
            tensors[name] = entry, raw
        return name

    items = [(f"g{i}.", g, FACTORS) for i, g in enumerate(m["groups"])]
    for prefix, item, parts in items + [(f"x{i}", x, ["tensor"]) for i, x in enumerate(m["extras"])]:
        if "alpha" in item:
            item["alpha"] = spell(alpha(item["alpha"]))
        for part in (p for p in parts if p in item):
            item[part] = place(item[part], prefix + part.replace("tensor", ""), part != "tensor")
    m["tensors"] = {name: entry for name, (entry, _) in tensors.items()}
    m["requires"] = features(m)
    return {key: value for key, value in m.items() if value != [] or key != "extras"}, tensors

# ---- chapter 7: seeded tensors ----
def chacha20(key, counter):
    start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574, *struct.unpack("<8I", key), counter, 0, 0, 0]
    x = start[:]
    for i in range(80):  # ten times four columns and four diagonals
        n, turn = i % 4, i // 4 % 2
        a, b, c, d = n, 4 + (n + turn) % 4, 8 + (n + 2 * turn) % 4, 12 + (n + 3 * turn) % 4
        for p, q, s, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) % 2**32
            w = x[s] ^ x[p]
            x[s] = (w << bits | w >> (32 - bits)) % 2**32
    return [(a + b) % 2**32 for a, b in zip(x, start)]

def step(t):
    return struct.unpack(">f", bytes.fromhex(t["seed"]["step"]))[0]

def generate(t):
    count, key, out = math.prod(t["shape"]), bytes.fromhex(t["seed"]["key"]), bytearray()
    words = (word for block in range((count + 15) // 16) for word in chacha20(key, block))
    for word, _ in zip(words, range(count)):
        f32 = struct.pack("<f", ((word >> 8) - 2**23) * step(t))  # the product is exact in f64: one rounding
        bits = int.from_bytes(f32, "little")
        out += {"F32": lambda: f32, "F16": lambda: struct.pack("<e", *struct.unpack("<f", f32)),
                "BF16": lambda: (bits + 0x7FFF + (bits >> 16 & 1) >> 16).to_bytes(2, "little")}[t["dtype"]]()
    return bytes(out)

# ---- chapter 6: quantised tensors ----
def dequantise(entries, tensors, name):
    """The binary32 values of an I8 tensor; OverflowError where one is not finite."""
    scales = struct.iter_unpack("<f", tensors[entries[name]["scales"]])
    codes = struct.iter_unpack(f"{entries[name]['shape'][-1]}b", tensors[name])
    return [struct.unpack("<f", struct.pack("<f", s * q))[0] for row, (s,) in zip(codes, scales) for q in row]

# ---- chapter 6: coded tensors ----
NEXT = (0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)
OCTAVE = 65536, 60097, 55109, 50535, 46341, 42495, 38968, 35734
SHAPES = [(0, 46, 0, 14), (32, 32, 0, 14), (64, 16, 0, 14), (92, 0, 0, 14), (0, 26, 6, 14), (0, 6, 13, 14), (0, 0, 19, 14), (0, 46, 0, 24),
          (0, 46, 0, 40), (32, 32, 0, 24), (64, 16, 0, 24), (0, 26, 6, 24), (0, 26, 6, 40), (0, 6, 13, 24), (0, 6, 13, 40), (64, 16, 0, 40)]

def frequencies(scale, shape, z):
    (linear, square, fourth, zero), shift, weights = SHAPES[shape], max(0, scale - 38) >> 3, []
    for i in range(32):
        y = max(0, (i << shift + 1) + (1 << shift) - 1 - z)
        t = min(4 * y * OCTAVE[scale % 8] >> 8 + (scale >> 3), 16384)
        e = (linear * t >> 8) + (square * t * t >> 16) + (fourth * min(t**4, 2**56) >> 32)
        g = {(0, 0): zero, (0, 1): 6, (1, 1): 28}.get((i, z), 32) if shift == 0 else 32
        weights.append((round(2 ** (30 - e % 64 / 64)) >> (e >> 6)) * g)
    out = [1 + 4064 * w // sum(weights) for w in weights]
    out[weights.index(max(weights))] += 4096 - sum(out)
    return out

class Bits:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        value = 0
        for _ in range(count):
            value = value << 1 | self.data[self.at >> 3] >> 7 - self.at % 8 & 1  # IndexError: cut short
            self.at += 1
        return value

    def rice(self, low):
        ones = 0
        while self.take(1):
            ones += 1
            need(ones <= 65536, "too large a number")
        folded = ones << low | self.take(low)
        return -(folded + 1 >> 1) if folded & 1 else folded >> 1

class Words:
    def __init__(self, words):
        need(not words or words[-1], "the top word is zero")
        self.words, self.state = list(words), 0
        while self.words and self.state < 2**32:
            self.state = self.state << 32 | self.words.pop()

    def take(self, table):
        """A symbol of a list of (symbol, start, frequency), one for each quantile."""
        symbol, start, frequency = table(self.state % 4096)
        self.state = (self.state >> 12) * frequency + self.state % 4096 - start
        if self.state < 2**32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    def bits(self, count):
        width = 12 - count
        return self.take(lambda q: (q >> width, q >> width << width, 1 << width))

def leb128(data, at):
    size, shift = 0, 0
    while True:
        byte = data[at]
        at, size, shift = at + 1, size | (byte & 127) << shift, shift + 7
        need(shift <= 35 and (byte or shift == 7), "the size of a stream")
        if byte < 128:
            return size, at

def decode(data, shape):
    """The binary32 values of coded bytes."""
    rows, columns = ([1] + shape)[-2:]
    matrices, bits = math.prod(shape) // (rows * columns), Bits(data)
    axis, p, a, b = (bits.take(4) for _ in range(4))
    need(axis < 2, "lines along no axis")
    lines, length = ((rows, columns), (columns, rows))[axis]
    need(matrices * lines <= 8 * len(data), "too few bits for the lines")
    first, side = (127 << p, 8, 0), []
    for _ in range(matrices):
        near, opens = first, True
        for _ in range(lines):
            if not bits.take(1):
                side.append(None)
                continue
            d = bits.rice(a)
            scale = near[1] + bits.rice(b) - (16 * d >> p)
            near = near[0] + d, scale, bits.take(4) if bits.take(1) else near[2]
            need(1 << p <= near[0] < 255 << p and 0 <= scale < 128, "a step or scale is out of range")
            first, opens = near if opens else first, False
            side.append(near)
    need(bits.take(-bits.at % 8) == 0, "bits behind those of the lines")
    at, each, sizes = bits.at >> 3, min(matrices, max(1, -(-32768 // (rows * columns)))), []
    for _ in range(-(-matrices // each)):
        size, at = leb128(data, at)
        sizes.append(size)
    need(len(data) == at + 4 * sum(sizes), "more or less than the streams")
    out, tables = [0.0] * math.prod(shape), {}

    def table(scale, shape, z):
        made = [(i, n) for i, n in enumerate(frequencies(scale, shape, z))]
        starts = [sum(n for _, n in made[:i]) for i, _ in made]
        return [(i, starts[i], n) for i, n in made for _ in range(n)].__getitem__

    for stream, size in enumerate(sizes):
        words, at = Words(struct.unpack_from(f"<{size}I", data, at)), at + 4 * size
        for place in range(stream * each * lines, min((stream + 1) * each, matrices) * lines):
            if side[place] is None:
                continue
            (step, scale, shape_), state = side[place], 0
            step, shift = struct.unpack("<f", struct.pack("<I", step << 23 - p))[0], max(0, scale - 38) >> 3
            start = place // lines * rows * columns + place % lines * (1, columns)[axis == 0]
            for j in range(length):
                z = state % 2
                key = scale, shape_, z
                k = words.take(tables.get(key) or tables.setdefault(key, table(*key)))
                if k == 31:
                    n = words.bits(5)
                    need(n <= 21, "too long a number")
                    m = words.bits(n - 12) << 12 if n > 12 else 0
                    k = 30 + 2**n + (m | words.bits(min(n, 12)) if n else 0)
                    need(k << shift < 2**23, "too large a number")
                k = k << shift | (words.bits(shift) if shift else 0)
                k = -k if k and words.bits(1) else k
                x = 2 * k - z * ((k > 0) - (k < 0))
                out[start + j * (1, columns)[axis]] = struct.unpack("<f", struct.pack("<f", step * x))[0]
                state = NEXT[state][k & 1]
        need(words.state == 0 and not words.words, "a stream is not one that a coder leaves")
    return out

# ---- chapter 9: exponents coded apart ----
def unpack_planes(data, size, width):
    """The raw bytes, so many of elements of `width`, of a tensor packed as planes/1."""
    raw, at, left = bytearray(), 0, size // width
    while left:
        count, least, above = min(left, 65536), data[at], data[at + 1]
        need(len(data) >= at + 4 + 2 * above, "a chunk is cut short")
        counts = struct.unpack_from(f"<{above + 1}H", data, at + 2)
        left, at = left - count, at + 4 + 2 * above
        need(least + above < 256 and counts[0] and counts[-1] and sum(counts) == 4096, "the frequencies of a chunk")
        starts, (words, at) = [sum(counts[:i]) for i in range(len(counts))], leb128(data, at)
        need(len(data) >= at + 4 * words, "a chunk is cut short")
        stream, at = Words(struct.unpack_from(f"<{words}I", data, at)), at + 4 * words
        table = [(least + i, start, n) for i, (start, n) in enumerate(zip(starts, counts)) for _ in range(n)]
        symbols = [stream.take(table.__getitem__) for _ in range(count)]
        need(stream.state == 0 and not stream.words, "a stream is not one that a coder leaves")
        need(len(data) >= at + count * (width - 1), "a chunk is cut short")
        for symbol in symbols:
            rest, at = int.from_bytes(data[at:at + width - 1], "little"), at + width - 1
            low = {1: 0, 2: 7, 4: 23}[width]
            raw += (rest >> low << 8 + low | symbol << low | rest % (1 << low)).to_bytes(width, "little")
    need(at == len(data), "bytes follow the last element")
    return bytes(raw)

# ---- chapters 4 and 8: the file ----
def write(manifest, tensors, pack=None):
    """The one file of a canonical manifest and the tensors {name: (entry, bytes)} that go inside."""
    text, body = canonical(manifest), b""
    header = {"__metadata__": {"tl": "1", "tl.manifest": text.decode(), "tl.root": "sha256:" + sha(text)}}
    header["__metadata__"] = dict(sorted((header["__metadata__"] | ({"tl.pack": pack} if pack else {})).items()))
    for name in sorted(tensors, key=lambda n: (-WIDTHS[stored(tensors[n][0])[0]], n)):
        entry, raw = tensors[name]
        offsets, (dtype, shape) = [len(body), len(body) + len(raw)], stored(entry)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += raw
    head = canonical(header, sort=False)
    head += b" " * (-(8 + len(head)) % 64)
    return len(head).to_bytes(8, "little") + head + body

def read(data, blobs=None):
    """(manifest, storage, {name: bytes}) of a .tl, every rule checked."""
    length = int.from_bytes(data[:8], "little")
    need(8 <= len(data) and length <= min(16 << 20, len(data) - 8), "too short, or too long a header")
    header, body, storage, tensors = json.loads(data[8:8 + length].decode()), data[8 + length:], {}, {}
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else {}
    need(isinstance(metadata, dict) and metadata.get("tl") == "1", "not a .tl of version 1")
    text = str(metadata.get("tl.manifest")).encode()
    need(len(text) <= 8 << 20 and metadata.get("tl.root") == "sha256:" + sha(text), "the root is not the manifest's")
    manifest = json.loads(text.decode())
    check_manifest(manifest)
    pack, packed = metadata.get("tl.pack"), {}
    need(pack in (None, "planes/1"), "Unsupported: packed, and zstd is not in the standard library")
    for name, entry in header.items():
        fields(entry, [], dtype=str, shape=[int], data_offsets=[int])
        part, plain = body[slice(*entry["data_offsets"][:2])], name.removeprefix("z.") if pack else name
        need(plain in manifest["tensors"] and plain not in tensors, f"{name} is stored, and not in the manifest, or twice")
        if plain != name:
            t = manifest["tensors"][plain]
            packed[name], part = ({"dtype": "U8", "shape": [len(part)]}, part), unpack_planes(part, byte_len(t), WIDTHS[stored(t)[0]])
        tensors[plain] = part
    need(bool(packed) == bool(pack), "packed as nothing")
    for name, t in manifest["tensors"].items():
        storage[name] = "raw" if name in tensors else "seeded" if "seed" in t else "external"
        if storage[name] == "external":
            need(blobs, f"{name} is left out; its blob is {t['sha256']}")
            with open(os.path.join(blobs, t["sha256"]), "rb") as f:
                tensors[name] = f.read()
        made = generate(t) if "seed" in t else None
        raw = tensors.setdefault(name, made)
        need(sha(raw) == t["sha256"] and len(raw) == byte_len(t), f"{name} does not have its digest or length")
        need(made in (None, raw), f"{name} is not what its seed makes")
        code, exponent = FLOATS.get(stored(t)[0], ("B", 1 << 8))
        need(all(v & exponent != exponent for v, in struct.iter_unpack("<" + code, raw)), f"{name} is not finite")
    for name in (name for name, t in manifest["tensors"].items() if "coded" in t):
        decode(tensors[name], manifest["tensors"][name]["shape"])
    for name in (name for name, t in manifest["tensors"].items() if "scales" in t):
        dequantise(manifest["tensors"], tensors, name)
    again, made = encode(manifest, tensors)
    need(canonical(again) == text, "the manifest is not canonical")
    parts = {name: packed.get(name) or made[name] for name in header}
    need(write(again, parts, pack) == data, "the file is not canonical")
    return manifest, storage, tensors

def main(command, path, other=None):
    with open(path, "rb") as f:
        data = f.read()
    if command == "build":
        spec = json.loads(data)
        manifest, tensors = encode(spec["manifest"], {n: bytes.fromhex(h) for n, h in spec["tensors"].items()})
        data = write(manifest, {n: t for n, t in tensors.items() if not (spec.get("thin") and "seed" in t[0])})
        read(data)
        with open(other, "xb") as f:
            f.write(data)
        return
    manifest, storage, tensors = read(data, other)
    root, tensors = "sha256:" + sha(canonical(manifest)), {name: raw.hex() for name, raw in tensors.items()}
    dump = {"root": root, "storage": storage, "manifest": manifest, "tensors": tensors}
    print(root if command == "check" else json.dumps(dump, indent=1))

if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("check", "dump", "build"):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (OSError, KeyError, TypeError, ValueError, ArithmeticError, RecursionError, struct.error, IndexError) as e:
        sys.exit(f"{sys.argv[2]}: {type(e).__name__}: {e}")
