//! Packed tensors: bombs, hidden bytes, lies about sizes.

use std::io::Write as _;

use tlkit::Code;
use tlkit::format::unpack;
use tlkit::tensor::Dtype;

use super::measure::measured;
use super::{KB, MB, assert_code};

/// A frame of zeros, some ten thousand times smaller than its content.
fn bomb(len: usize) -> Vec<u8> {
    zstd::bulk::compress(&vec![0; len], 19).unwrap()
}

/// The frame with another content size in its header (RFC 8878, 3.1.1.1).
fn claiming(frame: &[u8], size: u32) -> Vec<u8> {
    let descriptor = frame[4];
    assert_eq!(descriptor >> 6, 2, "the size has four bytes");
    let at = if descriptor & 0x20 == 0 { 6 } else { 5 };
    let mut frame = frame.to_vec();
    frame[at..at + 4].copy_from_slice(&size.to_le_bytes());
    frame
}

#[test]
fn a_bomb_is_not_unpacked() {
    let frame = bomb(256 * MB);
    assert!(frame.len() < 64 * KB);
    let (out, cost) = measured(|| unpack(Dtype::F32, &frame, 4 * KB as u64));
    assert_code(out, Code::PackSize);
    cost.within(64 * KB);
    // The frame agrees with the manifest, and lies.
    let liar = claiming(&frame, 4 * KB as u32);
    let (out, cost) = measured(|| unpack(Dtype::F32, &liar, 4 * KB as u64));
    assert!(matches!(
        out.unwrap_err().code(),
        Code::PackSize | Code::PackInvalid
    ));
    cost.within(MB);
}

#[test]
fn memory_grows_with_what_comes_out() {
    // Both manifest and frame promise 4 GB; there are 128 KB.
    let frame = claiming(&bomb(128 * KB), u32::MAX - 3);
    let (out, cost) = measured(|| unpack(Dtype::F32, &frame, u64::from(u32::MAX - 3)));
    assert!(matches!(
        out.unwrap_err().code(),
        Code::PackSize | Code::PackInvalid
    ));
    cost.within(2 * MB);
}

#[test]
fn a_frame_cannot_ask_for_a_huge_window() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.set_pledged_src_size(Some(16 * MB as u64)).unwrap();
    encoder.write_all(&vec![0; 16 * MB]).unwrap();
    let frame = encoder.finish().unwrap();
    let (out, cost) = measured(|| unpack(Dtype::F32, &frame, 16 * MB as u64));
    assert_code(out, Code::PackInvalid);
    cost.within(MB);
}

#[test]
fn nothing_hides_beside_the_frame() {
    let frame = bomb(256 * KB);
    let skippable = |magic: u32| [&magic.to_le_bytes()[..], &4u32.to_le_bytes(), b"evil"].concat();
    for magic in [0x184D_2A50, 0x184D_2A5F] {
        let skippable = skippable(magic);
        for parts in [[&skippable[..], &frame], [&frame, &skippable]] {
            let packed = parts.concat();
            assert_code(
                unpack(Dtype::F32, &packed, 256 * KB as u64),
                Code::PackInvalid,
            );
        }
    }
    let two = [&frame[..], &frame].concat();
    assert_code(unpack(Dtype::F32, &two, 256 * KB as u64), Code::PackInvalid);
    let empty = zstd::bulk::compress(b"", 3).unwrap();
    let after = [&frame[..], &empty].concat();
    assert_code(
        unpack(Dtype::F32, &after, 256 * KB as u64),
        Code::PackInvalid,
    );
    assert_code(unpack(Dtype::F32, &[], 0), Code::PackInvalid);
}

/// Breaks where checking a file holds what its tensors unpack to.
#[test]
fn a_packed_tensor_is_checked_piece_by_piece() {
    let raw = vec![0; 64 * MB];
    let packed = zstd::bulk::compress(&raw, 1).unwrap();
    let (a, b) = (tlkit::digest::Digest::of(&raw).hex(), 1f32.to_le_bytes());
    let manifest = format!(
        r#"{{"groups":[{{"A":"g0.A","B":"g0.B","alpha":1,"in":16777216,"rank":1,"scaling":"alpha/rank","targets":[{{"module":"q","out":1}}],"trained":["A","B"]}}],"method":"lora","requires":[],"tensors":{{"g0.A":{{"dtype":"F32","sha256":"{a}","shape":[1,16777216]}},"g0.B":{{"dtype":"F32","sha256":"{}","shape":[1,1]}}}},"tl":1}}"#,
        tlkit::digest::Digest::of(&b).hex()
    );
    let bytes = super::tl(
        &manifest,
        true,
        &[
            ("g0.B", Dtype::F32, vec![1, 1], &b),
            ("z.g0.A", Dtype::U8, vec![packed.len()], &packed),
        ],
    );
    let folder = super::Folder::new();
    let path = folder.file("x.tl", &bytes);
    let (report, cost) = measured(|| tlkit::verify::verify_file(&path, &tlkit::format::NoBlobs));
    assert_eq!(report.unwrap().tensors.len(), 2);
    cost.within(40 * MB);
}
