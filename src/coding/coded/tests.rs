use proptest::prelude::*;

use super::*;
use crate::coding::trellis;
use crate::digest::Digest;

fn sample(seed: u64, axis: Axis, extents: &Extents, mantissa: u8) -> Coded {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32
    };
    let mut line = || {
        if next().is_multiple_of(5) {
            return None;
        }
        let model = Model::new((next() % 100) as u8, (next() % 16) as u8).unwrap();
        let size = 1 << (next() % 4 + model.shift() + 1);
        let step = (110 << mantissa) + next() % (20 << mantissa);
        let mut number = || {
            let k = (next() % (2 * size)).cast_signed() - size.cast_signed();
            if next().is_multiple_of(97) {
                k * 1000
            } else {
                k
            }
        };
        let integers = (0..extents.line_len(axis)).map(|_| number()).collect();
        Some((Line { step, model }, integers))
    };
    Coded {
        axis,
        mantissa,
        lines: (0..extents.slices * extents.lines(axis))
            .map(|_| line())
            .collect(),
    }
}

/// The numbers by the definition, one by one.
fn values(coded: &Coded, extents: &Extents) -> Vec<f32> {
    let mut out = vec![0.0; extents.slices * extents.slice_len()];
    for (at, line) in coded.lines.iter().enumerate() {
        let Some((line, integers)) = line else {
            continue;
        };
        let (slice, own) = (
            at / extents.lines(coded.axis),
            at % extents.lines(coded.axis),
        );
        let mut state = 0;
        for (i, k) in integers.iter().enumerate() {
            let x = trellis::multiple(trellis::set(state), *k);
            let place = slice * extents.slice_len() + extents.place(coded.axis, own, i);
            out[place] = line.step(coded.mantissa) * x as f32;
            state = trellis::next(state, *k);
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Breaks where a number of any size, line or stream comes back as another one.
    #[test]
    fn what_is_encoded_is_decoded(
        slices in 1usize..5, rows in 1usize..90, columns in 1usize..300,
        seed in any::<u64>(), mantissa in 0u8..16, columnwise in any::<bool>(),
    ) {
        let extents = Extents { slices, rows, columns };
        let axis = if columnwise { Axis::Columns } else { Axis::Rows };
        let coded = sample(seed, axis, &extents, mantissa);
        let bytes = encode(&coded, &extents).unwrap();
        prop_assert_eq!(decode(&bytes, &extents).unwrap(), values(&coded, &extents));
        // Nothing may be cut off, nor added.
        prop_assert!(decode(&bytes[..bytes.len() - 1], &extents).is_err());
        prop_assert!(decode(&[&bytes[..], &[0]].concat(), &extents).is_err());
    }

    /// Breaks where damaged bytes end otherwise than in numbers or a refusal.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let extents = Extents { slices: 2, rows: 3, columns: 11 };
        let _ = decode(&bytes, &extents);
    }
}

/// Breaks where a coder of another version, or a change here, would not read files that are there.
#[test]
fn the_bytes_are_pinned() {
    let extents = Extents {
        slices: 3,
        rows: 16,
        columns: 1100,
    };
    let coded = sample(7, Axis::Rows, &extents, 9);
    let bytes = encode(&coded, &extents).unwrap();
    assert_eq!(
        Digest::of(&bytes).hex(),
        "cb37f90751c5773beb8081e21348b83d2cf7e820e6d7cd9f95f0fa5e58cdea6d"
    );
}

/// Breaks where the seeds of the fuzzing are not coded tensors, so that it finds nothing; and where one that is
/// damaged in any byte is neither read nor refused, or by one of the two readers alone.
#[test]
fn the_seeds_of_the_fuzzing_are_read_and_their_damage_is_borne() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds/coded_tensor");
    let mut count = 0;
    for seed in std::fs::read_dir(seeds).unwrap() {
        let bytes = std::fs::read(seed.unwrap().path()).unwrap();
        let [slices, rows, columns, coded @ ..] = &bytes[..] else {
            panic!("a seed has three extents")
        };
        let [slices, rows, columns] = [slices, rows, columns].map(|n| usize::from(*n));
        let extents = Extents {
            slices,
            rows,
            columns,
        };
        decode(coded, &extents).unwrap();
        for at in (0..coded.len()).step_by(3) {
            let mut damaged = coded.to_vec();
            damaged[at] ^= 1 << (at / 3 % 8);
            let (read, checked) = (decode(&damaged, &extents), check(&damaged, &extents));
            assert_eq!(read.is_ok(), checked.is_ok(), "byte {at}");
        }
        count += 1;
    }
    assert!(count >= 4);
}
