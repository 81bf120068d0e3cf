use faer::Mat;

use super::*;
use crate::adapter::{Adapter, Factor, Seed, TieGroup, delta_error};
use crate::convert::{ToTiedOptions, coalesce, import_tied};
use crate::error::Code;
use crate::fit::tests::{module, values};
use crate::format::{NoBlobs, Packing, TlFile, WriteOptions, generate, write_tl};
use crate::tensor::Tensor;
use crate::testing::shared;

/// A LoRA of rank 5 on two modules of three layers, terms of falling size; v of layer 2 is zero.
fn lora() -> Adapter {
    let (n, rank) = (140, 5);
    let one = |name: &str, layer: u32, out: usize| {
        let mut a = values(rank * n, layer as u16, 1);
        for (k, row) in a.chunks_mut(n).enumerate() {
            row.iter_mut().for_each(|x| *x *= 0.4f32.powi(k as i32));
        }
        let mut b = values(out * rank, layer as u16, name.len() as u8);
        if name == "v_proj" && layer == 2 {
            b.fill(0.0);
        }
        module(name, layer, &a, &b, rank)
    };
    let groups = (0..3).flat_map(|l| [one("q_proj", l, 160), one("v_proj", l, 40)]);
    coalesce(&Adapter {
        groups: groups.collect(),
        ..Adapter::default()
    })
    .unwrap()
}

/// ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules, by the decomposition that verification uses.
fn distance(before: &Adapter, after: &Adapter) -> f64 {
    let group = |target: &str| {
        let own = |g: &&TieGroup| g.targets[0].module == target;
        after.groups.iter().find(own).unwrap()
    };
    let (mut off, mut all) = (0.0, 0.0);
    for old in &before.groups {
        let new = group(&old.targets[0].module);
        for layer in 0..old.instances() {
            let (old, new) = (
                old.low_rank(layer, 0).unwrap(),
                new.low_rank(layer, 0).unwrap(),
            );
            let error = delta_error(&old, &new).unwrap();
            off += error.frobenius.powi(2);
            all += error.norm.powi(2);
        }
    }
    (off / all).sqrt()
}

/// Breaks where the error that is told is not that of the file, or is beyond what was asked for.
#[test]
fn the_error_is_that_of_the_numbers_that_are_read() {
    let lora = lora();
    let dir = tempfile::tempdir().unwrap();
    for error in [0.003, 0.05, 0.4] {
        let (coded, report) = code(&lora, CodeTarget::Error(error)).unwrap();
        let path = dir.path().join(format!("{error}.tl"));
        let written = write_tl(&path, &coded, &WriteOptions::default()).unwrap();
        let read = TlFile::open(&path).unwrap().load(&NoBlobs).unwrap();
        let off = distance(&lora, &read);
        assert!(off <= error && off > 0.9 * error, "{off} {error}");
        assert!(
            (off / report.error - 1.0).abs() < 1e-4,
            "{off} {}",
            report.error
        );
        assert_eq!(written.bytes, report.file_bytes);
        assert!(report.bound < report.bits && report.gap < 3.0, "{report:?}");
        let zero = report.modules.iter().find(|m| m.norm == 0.0).unwrap();
        assert_eq!((zero.rank, zero.error), (0, 0.0));
        // What is read and written again is the same file.
        let again = dir.path().join("again.tl");
        let mut options = WriteOptions {
            existing: crate::fs::Existing::Replace,
            ..WriteOptions::default()
        };
        assert_eq!(write_tl(&again, &read, &options).unwrap(), written);
        options.packing = Packing::Thin;
        options.zstd = true;
        assert_eq!(
            write_tl(&again, &read, &options).unwrap().root,
            written.root
        );
        assert_eq!(
            TlFile::open(&again)
                .unwrap()
                .load(&NoBlobs)
                .unwrap()
                .groups
                .len(),
            2
        );
    }
}

#[test]
fn the_bytes_are_those_asked_for() {
    let lora = lora();
    for bytes in [3000, 5000] {
        let (coded, report) = code(&lora, CodeTarget::Bytes(bytes)).unwrap();
        assert!(report.file_bytes <= bytes && report.file_bytes > bytes * 95 / 100);
        assert!((distance(&lora, &coded) / report.error - 1.0).abs() < 1e-4);
    }
    let (_, report) = code(&lora, CodeTarget::Bits(8.0)).unwrap();
    assert!(report.bits <= 8.0 && report.error < 0.05);
    let refused = |target| code(&lora, target).unwrap_err().code();
    assert_eq!(refused(CodeTarget::Bytes(900)), Code::Usage);
    assert_eq!(refused(CodeTarget::Error(1.0)), Code::Usage);
    assert_eq!(refused(CodeTarget::Bits(f64::NAN)), Code::Usage);
}

/// Texts of which only the moments are known: those of a few inputs, some of their numbers far larger than others.
struct Made {
    inputs: Vec<f64>,
    asked: usize,
}

impl Made {
    const POSITIONS: usize = 300;

    fn new(n: usize) -> Self {
        let mut inputs: Vec<f64> = values(Self::POSITIONS * n, 77, 3)
            .into_iter()
            .map(f64::from)
            .collect();
        for x in inputs.chunks_mut(n) {
            let common = x[0];
            for (j, x) in x.iter_mut().enumerate() {
                *x = (*x + 0.6 * common) * if j % 29 == 3 { 8.0 } else { 1.0 };
            }
        }
        Self { inputs, asked: 0 }
    }

    /// Every input along the directions: positions × p.
    fn along(&self, basis: &Mat<f64>) -> Mat<f64> {
        let n = basis.nrows();
        let x = Mat::from_fn(Self::POSITIONS, n, |t, j| self.inputs[t * n + j]);
        x * basis
    }
}

impl Texts for Made {
    fn moments(&mut self, of: &[Reading]) -> crate::error::Result<Vec<Mat<f64>>> {
        self.asked += 1;
        let one = |r: &Reading| {
            let z = self.along(&r.basis);
            (z.transpose() * &z) * faer::Scale(1.0 / Self::POSITIONS as f64)
        };
        Ok(of.iter().map(one).collect())
    }

    fn inputs(&mut self, of: &[Reading]) -> crate::error::Result<Vec<InputMoments>> {
        let one = |r: &Reading| {
            let n = r.basis.nrows();
            let x = self.along(&Mat::identity(n, n));
            let cross =
                (self.along(&r.basis).transpose() * &x) * faer::Scale(1.0 / Self::POSITIONS as f64);
            let diagonal = (0..n).map(|j| x.col(j).squared_norm_l2() / Self::POSITIONS as f64);
            InputMoments {
                cross,
                diagonal: diagonal.collect(),
            }
        };
        Ok(of.iter().map(one).collect())
    }
}

/// √(Σ E‖(ΔW − ΔW')·x‖² ÷ Σ E‖ΔW·x‖²), by the updates in full.
fn output_distance(before: &Adapter, after: &Adapter, texts: &Made) -> f64 {
    let (mut off, mut all) = (0.0, 0.0);
    for old in &before.groups {
        let own = |g: &&TieGroup| g.targets[0].module == old.targets[0].module;
        let new = after.groups.iter().find(own).unwrap();
        for layer in 0..old.instances() {
            let [old, new] = [old, new].map(|g| g.low_rank(layer, 0).unwrap().delta());
            let transposed = |of: &dyn Fn(usize, usize) -> f32| {
                let (m, n) = old.dim();
                texts
                    .along(&Mat::from_fn(n, m, |j, i| f64::from(of(i, j))))
                    .squared_norm_l2()
            };
            off += transposed(&|i, j| old[[i, j]] - new[[i, j]]);
            all += transposed(&|i, j| old[[i, j]]);
        }
    }
    (off / all).sqrt()
}

/// Breaks where the error of outputs that is told is not that of the numbers, is beyond what was asked for, or costs no less
/// than by way of the updates.
#[test]
fn outputs_are_off_by_what_was_asked_for() {
    let (lora, mut texts) = (lora(), Made::new(140));
    let found = code_outputs(&lora, CodeTarget::Error(0.1), &mut texts).unwrap();
    let (report, plain) = (&found.report, &found.plain_report);
    let told = report.output_error.unwrap();
    assert!(told <= 0.1 && told > 0.09, "{}", report.summary);
    let off = output_distance(&lora, &found.adapter, &texts);
    assert!((off / told - 1.0).abs() < 1e-3, "{off} {told}");
    let updates = distance(&lora, &found.adapter);
    assert!((updates / report.error - 1.0).abs() < 1e-3, "{updates}");
    // The same bytes to the updates.
    let beside = plain.output_error.unwrap();
    assert!(beside > 1.05 * told, "{beside} {told}");
    assert!(plain.error < report.error && plain.file_bytes <= report.file_bytes);
    let off = output_distance(&lora, &found.plain, &texts);
    assert!((off / beside - 1.0).abs() < 1e-3, "{off} {beside}");
    assert!(
        report.bound > 0.0 && report.bound < report.bits,
        "{report:?}"
    );
    let of = |m: &&CodedModule| m.output_error.is_some();
    assert_eq!(report.modules.iter().filter(of).count(), 6);
    assert!(texts.asked <= 5, "{}", texts.asked);

    let error = code_outputs(&tied(false, false), CodeTarget::Error(0.1), &mut texts);
    assert_eq!(error.unwrap_err().code(), Code::Usage);
    texts.inputs.fill(f64::NAN);
    let error = code_outputs(&lora, CodeTarget::Error(0.1), &mut texts);
    assert_eq!(error.unwrap_err().code(), Code::NonFinite);
}

/// The adapter with both groups tied, over three layers; each with what it has on the rank side, and v or not.
fn tied(core: bool, v: bool) -> Adapter {
    let mut adapter = lora();
    for group in &mut adapter.groups {
        let (r, m) = (group.rank, group.total_out());
        group.a.tensor = group.a.tensor.index_first(0).unwrap();
        group.b.tensor = group.b.tensor.index_first(0).unwrap();
        let factor = |shape: Vec<usize>, salt| {
            let values = values(shape.iter().product(), 9, salt);
            Some(Factor::trained(Tensor::from_f32(shape, &values).unwrap()))
        };
        match core {
            true => group.core = factor(vec![3, r, r], 5),
            false => group.u = factor(vec![3, r], 6),
        }
        group.v = v.then(|| factor(vec![3, m], 7)).flatten();
    }
    adapter
}

/// Breaks where a tied group's errors are not those of its updates, or a factor's line has the place of another.
#[test]
fn tied_groups_are_coded_as_they_are() {
    for (core, v) in [(false, false), (false, true), (true, false), (true, true)] {
        let before = tied(core, v);
        for error in [0.01, 0.1] {
            let (coded, report) = code(&before, CodeTarget::Error(error)).unwrap();
            let off = distance(&before, &coded);
            assert!(
                (off / report.error - 1.0).abs() < 1e-3,
                "{core} {v} {off} {report:?}"
            );
            assert!(
                off <= error && off > 0.9 * error,
                "{core} {v} {off} {error}"
            );
            let factors = coded.groups.iter().flat_map(TieGroup::factors);
            assert!(
                factors
                    .map(|(_, f)| f)
                    .all(|f| f.tensor.coded_bytes().is_some())
            );
            assert_eq!(coded.method(), before.method());
            assert!(report.kept.is_empty());
        }
    }
}

/// Breaks where what two adapters share is coded twice, or the error is not that of both together.
#[test]
fn what_adapters_share_is_coded_once() {
    for core in [false, true] {
        let one = tied(core, false);
        let mut two = one.clone();
        for (g, group) in two.groups.iter_mut().enumerate() {
            let side = group.core.as_mut().or(group.u.as_mut()).unwrap();
            let shape = side.tensor.shape().to_vec();
            let own = values(shape.iter().product(), 30, g as u8);
            side.tensor = Tensor::from_f32(shape, &own).unwrap();
        }
        let (coded, report) = code_all(&[&one, &two], CodeTarget::Error(0.05)).unwrap();
        let off = [(&one, &coded[0]), (&two, &coded[1])].map(|(a, b)| distance(a, b));
        for (off, told) in off.iter().zip(&report.adapters) {
            assert!(
                (off / told.error - 1.0).abs() < 1e-3,
                "{off} {}",
                told.error
            );
        }
        assert!(report.error <= 0.05 && report.error > 0.045, "{core}");
        let both = coded[0].groups.iter().zip(&coded[1].groups);
        let mut shared = 0;
        for (a, b) in both {
            for (a, b) in [(&a.a, &b.a), (&a.b, &b.b)] {
                let bytes = a.tensor.coded_bytes().unwrap();
                assert_eq!(bytes.id(), b.tensor.coded_bytes().unwrap().id());
                shared += bytes.len() as u64;
            }
        }
        assert_eq!(report.shared_bytes, shared);
        let files = report.adapters.iter().map(|a| a.file_bytes).sum::<u64>();
        assert_eq!(report.file_bytes, files + shared);
    }
}

#[test]
fn what_groups_share_and_what_seeds_make_stays() {
    let mut adapter = tied(false, false);
    adapter.groups[0].a.tensor = adapter.groups[1].a.tensor.clone();
    let error = code(&adapter, CodeTarget::Error(0.1)).unwrap_err();
    assert_eq!(error.code(), Code::Usage);
    let mut adapter = tied(false, false);
    let seed = Seed {
        key: [3; 32],
        step: f32::powi(2.0, -23),
    };
    let group = &mut adapter.groups[0];
    let shape = group.a.tensor.shape().to_vec();
    let values = generate(&seed, shape.iter().product()).unwrap();
    group.a = Factor {
        tensor: Tensor::from_f32(shape, &values).unwrap(),
        trained: false,
        seed: Some(seed),
    };
    let (coded, _) = code(&adapter, CodeTarget::Error(0.05)).unwrap();
    assert!(coded.groups[0].a.seed.is_some());
    assert!(coded.groups[0].b.tensor.coded_bytes().is_some());
}

/// Breaks where coding loses what it is for: few bits above the bound, all bytes of the file counted.
#[test]
fn a_real_adapter_is_near_the_bound() {
    let Some(dir) = shared("adapters/smollm-135m-r16-qv-medai-ckpt1000") else {
        return;
    };
    let lora = import_tied(&dir, &ToTiedOptions::default()).unwrap();
    let (_, report) = code(&lora.adapter, CodeTarget::Error(0.1)).unwrap();
    assert!(
        report.gap < 0.2 && report.error <= 0.1,
        "{}",
        report.summary
    );
    assert!(report.bits < 2.6, "{}", report.summary);
}
