use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;

use super::*;
use crate::peft::testing::shared;
use crate::tensor::Dtype;

/// A pickle of protocol 2, instruction by instruction, as torch writes them.
#[derive(Clone, Default)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.op(b"X")
            .op(&(text.len() as u32).to_le_bytes())
            .op(text.as_bytes())
    }

    fn int(self, value: i64) -> Self {
        self.op(b"\x8a\x08").op(&value.to_le_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |p, v| p.int(*v)).op(b"t")
    }

    fn storage(self, class: &str, key: &str, len: i64) -> Self {
        let p = self
            .op(b"(")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu");
        p.int(len).op(b"tQ")
    }

    fn ordered_dict(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R")
    }

    /// One entry: name, then `_rebuild_tensor_v2` of storage `0` with `len` F32 elements.
    fn tensor(self, name: &str, len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        let p = self
            .text(name)
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(");
        let p = p
            .storage("FloatStorage", "0", len)
            .int(offset)
            .ints(shape)
            .ints(strides);
        p.op(b"\x89").ordered_dict().op(b"tR")
    }

    fn start() -> Self {
        Self::default().op(b"\x80\x02}q\x00(")
    }

    fn end(self) -> Vec<u8> {
        self.op(b"u.").0
    }
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn read_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    read(Cursor::new(bytes), bytes.len() as u64, Limits::default())
}

/// Reads an archive of this pickle and one storage of 12 F32 elements, 0 to 11.
fn load(pickle: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    read_bytes(&archive(&[
        ("a/data.pkl", pickle),
        ("a/data/0", &floats(12)),
        ("a/byteorder", b"little"),
    ]))
}

fn code(pickle: &[u8]) -> Code {
    load(pickle).unwrap_err().code()
}

#[test]
fn views_of_one_storage_are_shared_sliced_and_transposed() {
    let p = Pickle::start()
        .tensor("whole", 12, 0, &[3, 4], &[4, 1])
        .tensor("rows", 12, 4, &[2, 4], &[4, 1])
        .tensor("transposed", 12, 0, &[4, 3], &[1, 4])
        .tensor("column", 12, 1, &[3, 1], &[4, 9])
        .tensor("expanded", 12, 5, &[2, 2], &[0, 1])
        .tensor("scalar", 12, 7, &[], &[])
        .tensor("empty", 12, 12, &[0, 4], &[4, 1])
        .end();
    let t = load(&p).unwrap();
    let values = |name: &str| t[name].to_f32().unwrap();
    assert_eq!(
        values("whole"),
        (0..12).map(|i| i as f32).collect::<Vec<_>>()
    );
    assert_eq!(values("rows"), [4., 5., 6., 7., 8., 9., 10., 11.]);
    assert_eq!(
        values("transposed"),
        [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]
    );
    assert_eq!(values("column"), [1., 5., 9.]);
    assert_eq!(values("expanded"), [5., 6., 5., 6.]);
    assert_eq!((values("scalar"), t["scalar"].shape()), (vec![7.], &[][..]));
    assert_eq!((t["empty"].len(), t["empty"].shape()), (0, &[0, 4][..]));
    // Sharing, not copying: the two begin in the same bytes.
    assert_eq!(t["rows"].data().as_ptr(), t["whole"].data()[16..].as_ptr());
}

#[test]
fn parameters_metadata_memo_and_newer_instructions_are_understood() {
    // OrderedDict with `_metadata`, a Parameter, memoised names: what `torch.save(m.state_dict())` has.
    let p = Pickle::default()
        .op(b"\x80\x02")
        .ordered_dict()
        .op(b"q\x00(")
        .text("w")
        .op(b"q\x01");
    let p = p.global("torch._utils", "_rebuild_parameter").op(b"(");
    let p = p
        .global("torch._utils", "_rebuild_tensor_v2")
        .op(b"(")
        .storage("HalfStorage", "0", 24);
    let p = p
        .op(b"K\x00K\x02M\x0c\x00\x86K\x0cK\x01\x86\x89")
        .ordered_dict()
        .op(b"tR");
    let p = p
        .op(b"\x88")
        .ordered_dict()
        .op(b"tRu}")
        .text("_metadata")
        .ordered_dict()
        .op(b"sb.");
    let t = load(&p.0).unwrap();
    assert_eq!((t["w"].dtype(), t["w"].shape()), (Dtype::F16, &[2, 12][..]));

    // Protocol 4, an untyped storage, _rebuild_tensor_v3 with a dtype of its own.
    let p = Pickle::default().op(b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94\x8c\x01x\x94");
    let p = p.op(b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v3\x93\x94(");
    let p = p
        .op(b"(")
        .text("storage")
        .op(b"\x8c\x0dtorch.storage\x8c\x0eUntypedStorage\x93");
    let p = p
        .text("0")
        .text("cpu")
        .int(48)
        .op(b"tQ")
        .int(40)
        .ints(&[8])
        .ints(&[1])
        .op(b"\x89");
    let p = p
        .ordered_dict()
        .global("torch", "float8_e4m3fn")
        .op(b"tRs.");
    let t = load(&p.0).unwrap();
    assert_eq!((t["x"].dtype(), t["x"].len()), (Dtype::F8_E4M3, 8));
}

#[test]
fn nothing_but_tensors_is_ever_built() {
    // The classic attack; the message must name what was asked for.
    let p = Pickle::default()
        .op(b"\x80\x02")
        .global("os", "system")
        .text("true")
        .op(b"\x85R.");
    let e = load(&p.0).unwrap_err();
    assert_eq!(e.code(), Code::PickleRefused);
    assert!(
        e.message().contains("`os.system`") && e.hint_text().is_some(),
        "{e}"
    );

    let one = |f: fn(Pickle) -> Pickle| f(Pickle::default().op(b"\x80\x02")).op(b".").0;
    let refused: [fn(Pickle) -> Pickle; 14] = [
        |p| p.global("builtins", "eval"),
        |p| p.global("torch", "load"),
        |p| p.global("torch.storage", "FloatStorage"),
        |p| p.global("torch._utils", "_rebuild_device_tensor_from_numpy"),
        |p| p.global("os\x1b[31m", "system"),
        |p| p.text("os").text("system").op(b"\x93"),
        |p| p.op(b"(S'true'\nios\nsystem\n"),
        |p| p.op(b"\x82\x01"),
        |p| p.op(b"(").text("x").op(b"o"),
        |p| {
            p.ordered_dict()
                .global("collections", "OrderedDict")
                .op(b")\x81")
        },
        |p| p.text("not callable").op(b")R"),
        |p| p.text("state").op(b"}b"),
        |p| p.op(b"(").text("module").op(b"tQ"),
        |p| p.global("torch._utils", "_rebuild_tensor_v2").op(b")R"),
    ];
    for (i, make) in refused.into_iter().enumerate() {
        assert_eq!(code(&one(make)), Code::PickleRefused, "{i}");
    }
}

#[test]
fn only_a_flat_dict_of_tensors_is_accepted() {
    for p in [
        Pickle::default().op(b"\x80\x02].").0,
        Pickle::start().text("epoch").int(3).end(),
        Pickle::start().int(3).text("x").end(),
        Pickle::start().text("state_dict").op(b"}").end(),
    ] {
        assert_eq!(code(&p), Code::PickleRefused);
    }
    let twice = Pickle::start()
        .tensor("w", 12, 0, &[1], &[1])
        .tensor("w", 12, 1, &[1], &[1])
        .end();
    assert_eq!(code(&twice), Code::DuplicateKey);
    assert!(load(&Pickle::start().end()).unwrap().is_empty());
}

#[test]
fn views_outside_their_storage_are_refused() {
    let max = i64::MAX;
    for (len, offset, shape, strides) in [
        (12, 0, &[13][..], &[1][..]),
        (12, 1, &[3, 4], &[4, 1]),
        (12, 12, &[1], &[1]),
        (12, 13, &[0], &[1]),
        (12, 0, &[2, 2], &[max, 1]),
        (12, 0, &[3, 3], &[max, max]),
        (12, max, &[2], &[max]),
        (13, 0, &[1], &[1]),
        (max, 0, &[1], &[1]),
        (12, 0, &[1 << 40], &[0]),
    ] {
        let p = Pickle::start()
            .tensor("w", len, offset, shape, strides)
            .end();
        let code = code(&p);
        assert!(
            matches!(code, Code::BadArchive | Code::PickleRefused),
            "{shape:?} {strides:?}: {code:?}"
        );
    }
    for shape in [&[max, max, max][..], &[0, max, max]] {
        assert_eq!(
            code(&Pickle::start().tensor("w", 12, 0, shape, &[1, 1, 1]).end()),
            Code::ShapeOverflow
        );
    }
    for (offset, shape, strides) in [
        (-1, &[1][..], &[1][..]),
        (0, &[-1], &[1]),
        (0, &[1], &[-1]),
        (0, &[1], &[]),
        (0, &[1; 9], &[1; 9]),
    ] {
        assert_eq!(
            code(
                &Pickle::start()
                    .tensor("w", 12, offset, shape, strides)
                    .end()
            ),
            Code::PickleRefused
        );
    }
}

#[test]
fn copies_of_overlapping_views_are_bounded() {
    // Each view is inside its storage, and together they would take 24 MB out of 1 kB.
    let many = (0..500).fold(Pickle::start(), |p, i| {
        p.tensor(&i.to_string(), 12, 0, &[1000, 12], &[0, 1])
    });
    let e = load(&many.end()).unwrap_err();
    assert_eq!(e.code(), Code::BadArchive);
    assert!(e.message().contains("overlap"), "{e}");
}

#[test]
fn hostile_bytecode_ends_in_an_error() {
    let deep = |op: &[u8]| Pickle::default().op(&op.repeat(300_000)).op(b".").0;
    for op in [&b"("[..], b"N", b"]", b")"] {
        assert_eq!(code(&deep(op)), Code::PickleRefused);
    }
    // Nested a hundred thousand deep: recursion, in dropping as well, would overflow the stack.
    let nested = Pickle::default()
        .op(b")")
        .op(&b"\x85".repeat(100_000))
        .op(b".")
        .0;
    assert_eq!(code(&nested), Code::PickleRefused);
    let long = Pickle::default().op(&b"N0".repeat(3 << 20)).op(b"}.").0;
    assert_eq!(code(&long), Code::PickleRefused);
    let own = Pickle::default().op(b"}q\x00(").text("x").op(b"h\x00u.").0;
    assert_eq!(code(&own), Code::PickleRefused);
    for broken in [
        &b""[..],
        b".",
        b"0.",
        b"\x80",
        b"X\xff\xff\xff\xffa",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffa",
        b"h\x07.",
        b"t.",
        b"(}u",
        b"\x85.",
        b"q\x00",
        b"ctorch\n",
        b"\x8a\x09aaaaaaaaa.",
        b"(\x86.",
        b"}(Nu.",
        b"X\x01\0\0\0\xff.",
    ] {
        let code = code(broken);
        assert!(
            matches!(code, Code::BadArchive | Code::PickleRefused),
            "{broken:?}"
        );
    }
}

#[test]
fn every_cut_and_every_flipped_byte_is_an_error_or_a_tensor_and_no_panic() {
    let p = Pickle::start().tensor("w", 12, 0, &[3, 4], &[1, 3]).end();
    let good = archive(&[
        ("a/data.pkl", &p),
        ("a/data/0", &floats(12)),
        ("a/byteorder", b"little"),
    ]);
    let whole = read_bytes(&good).unwrap();
    for cut in 0..good.len() {
        assert!(read_bytes(&good[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() {
        for bit in [1, 0x80] {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            // The CRC covers all content, so what is still accepted is unchanged.
            if let Ok(t) = read_bytes(&bytes) {
                assert!(t["w"].same_bytes(&whole["w"]), "byte {at}");
            }
        }
        if at < p.len() {
            let mut pickle = p.clone();
            pickle[at] ^= 0x41;
            drop(load(&pickle));
        }
    }
}

#[test]
fn archives_of_another_shape_are_told_apart() {
    let p = Pickle::start().tensor("w", 12, 0, &[12], &[1]).end();
    let data = floats(12);
    let message = |entries: &[(&str, &[u8])]| {
        let e = read_bytes(&archive(entries)).unwrap_err();
        assert_eq!(e.code(), Code::BadArchive);
        e.message().to_owned()
    };
    let big = message(&[
        ("a/data.pkl", &p),
        ("a/data/0", &data),
        ("a/byteorder", b"big"),
    ]);
    assert!(big.contains("byte order is big"), "{big}");
    assert!(message(&[("a/data.pkl", &p)]).contains("has no data/0"));
    assert!(message(&[("data.pkl", &p)]).contains("folder"));
    assert!(message(&[("a/b/data.pkl", &p)]).contains("folder"));
    assert!(message(&[("a/data.pkl", &p), ("b/data.pkl", &p)]).contains("folder"));
    assert!(message(&[("a/data.pkl", &p), ("a/data/0", &data[4..])]).contains("44 bytes"));
    assert!(message(&[]).contains("zip"));
    let plain = |bytes: &[u8]| read_bytes(bytes).unwrap_err().message().to_owned();
    assert!(
        plain(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.rest")
            .contains("before 1.6")
    );
    assert!(plain(b"version https://git-lfs.github.com/spec/v1").contains("LFS"));
    assert!(plain(b"\x80\x04.").contains("bare pickle"));
    assert!(plain(b"").contains("no zip"));
}

#[test]
fn limits_hold() {
    let p = Pickle::start()
        .tensor("v", 12, 0, &[1], &[1])
        .tensor("w", 12, 0, &[1], &[1])
        .end();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_model.bin");
    std::fs::write(
        &path,
        archive(&[("a/data.pkl", &p), ("a/data/0", &floats(12))]),
    )
    .unwrap();
    let with = |limits| read_torch_archive(&path, limits);
    assert_eq!(with(Limits::default()).unwrap().len(), 2);
    let few = with(Limits {
        max_tensors: 1,
        ..Limits::default()
    })
    .unwrap_err();
    assert_eq!(
        (few.code(), few.path()),
        (Code::TooManyTensors, Some(path.as_path()))
    );
    for limits in [
        Limits {
            max_pickle: 100,
            ..Limits::default()
        },
        Limits {
            max_file: 100,
            ..Limits::default()
        },
    ] {
        assert_eq!(with(limits).unwrap_err().code(), Code::BadArchive);
    }
    let missing = read_torch_archive(&dir.path().join("none"), Limits::default()).unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[test]
fn a_real_adapter_from_2023_is_read() {
    let Some(path) = shared("adapters/bloom-560m-r8-bin/adapter_model.bin") else {
        return;
    };
    let t = read_torch_archive(&path, Limits::default()).unwrap();
    assert_eq!(t.len(), 48);
    let a = &t["base_model.model.transformer.h.0.self_attention.query_key_value.lora_A.weight"];
    assert_eq!((a.dtype(), a.shape()), (Dtype::F32, &[16, 1024][..]));
    let b = &t["base_model.model.transformer.h.23.self_attention.query_key_value.lora_B.weight"];
    assert_eq!(b.shape(), [2048, 8, 1]);
    for (name, tensor) in &t {
        let values = tensor.to_f32().unwrap();
        assert!(
            values.iter().all(|x| x.is_finite()) && values.iter().any(|x| *x != 0.0),
            "{name}"
        );
    }
}

/// Breaks where the audit's view of an old adapter differs from the one that converts it.
#[test]
fn shapes_without_data_are_those_of_the_tensors() {
    let Some(dir) = crate::peft::testing::shared("adapters/bloom-560m-r8-bin") else {
        return;
    };
    let file = dir.join("adapter_model.bin");
    let tensors = super::read_torch_archive(&file, Limits::default()).unwrap();
    let shapes = super::read_torch_shapes(&file, Limits::default()).unwrap();
    assert_eq!(shapes.len(), tensors.len());
    for (name, (dtype, shape)) in shapes {
        let tensor = &tensors[&name];
        assert_eq!((dtype, shape.as_slice()), (tensor.dtype(), tensor.shape()));
    }
}
