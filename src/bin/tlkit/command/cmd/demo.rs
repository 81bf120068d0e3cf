//! The main job on files that the binary carries: train, convert, merge, verify, undo, store, audit.

use std::fs;
use std::path::{Path, PathBuf};

use tlkit::audit;
use tlkit::convert::{ToTiedOptions, peft_to_tied, tied_to_peft};
use tlkit::fleet;
use tlkit::format::{NoBlobs, encode};
use tlkit::fs::live::Live;
use tlkit::merge::{self, Control, ExecOptions, InPlaceOptions, MergeInput, PlanOptions};
use tlkit::peft::export::ExportOptions;
use tlkit::progress::Progress;
use tlkit::safetensors::Checkpoint;
use tlkit::store::{self, Store};
use tlkit::train::{RunOptions, Settings, TrainingRun};
use tlkit::verify::{verify_file, verify_merged};
use tlkit::{Code, Error, Result};

use super::show;
use crate::command::args::Demo;
use crate::command::output::{Outcome, Output, bytes, count, number, percent};

macro_rules! carried {
    ($($path:literal),+ $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../../../fixtures/", $path)) as &[u8])),+]
    };
}

const FILES: &[(&str, &[u8])] = carried![
    "llama-tiny/config.json",
    "llama-tiny/tokenizer.json",
    "llama-tiny/tokenizer_config.json",
    "task/train.jsonl",
    "task/valid.jsonl",
    "llama-tiny/model.safetensors.index.json",
    "llama-tiny/model-00001-of-00002.safetensors",
    "llama-tiny/model-00002-of-00002.safetensors",
    "adapters/style-peft/adapter_config.json",
    "adapters/style-peft/adapter_model.safetensors",
    "adapters/lora/adapter_config.json",
    "adapters/lora/adapter_model.safetensors",
];

pub(crate) fn demo(args: &Demo, output: &Output) -> Result<Outcome> {
    let dir = match &args.keep {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("tlkit-demo-{}", std::process::id())),
    };
    fs::create_dir(&dir).map_err(|e| Error::io(&dir, "create", e))?;
    // Gone with an interrupt too, unless it was to be kept.
    let _live = args.keep.is_none().then(|| Live::new(&dir));
    let result = Tour {
        dir: dir.clone(),
        output,
        steps: Vec::new(),
    }
    .run();
    if args.keep.is_none() {
        // A folder left in the temporary directory does no harm; the tour's own result counts.
        let _ = fs::remove_dir_all(&dir);
    }
    result
}

struct Tour<'a> {
    dir: PathBuf,
    output: &'a Output,
    steps: Vec<Step>,
}

#[derive(serde::Serialize)]
struct Step {
    command: String,
    result: String,
}

impl Tour<'_> {
    fn run(mut self) -> Result<Outcome> {
        for (name, content) in FILES {
            let path = self.dir.join(name);
            let parent = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
            fs::write(&path, content).map_err(|e| Error::io(&path, "write", e))?;
        }
        let base = Checkpoint::open(self.dir.join("llama-tiny"))?;
        let tl = self.train()?;
        self.convert(&base)?;
        let merged = self.merge(&base, &tl)?;
        self.verify(&base, &tl, &merged)?;
        self.same_from_peft(&base, &tl, &merged)?;
        self.in_place(&tl)?;
        self.store(&tl)?;
        self.audit(&tl)?;
        let steps = self.steps;
        let note =
            "Every step ran the library on a LLaMA-shaped model of 4 layers (bf16, two shards).";
        self.output.report(&steps, || {
            let text = steps.iter().enumerate().map(|(i, s)| {
                let result = s.result.replace('\n', "\n   ");
                format!("{}. $ tlkit {}\n   {result}\n\n", i + 1, s.command)
            });
            format!("{}{note}", text.collect::<String>())
        })?;
        Ok(Outcome::Success)
    }

    fn step(&mut self, command: &str, result: String) {
        self.steps.push(Step {
            command: command.to_owned(),
            result,
        });
    }

    fn train(&mut self) -> Result<PathBuf> {
        let tl = self.dir.join("words.tl");
        let mut settings = Settings::default();
        settings.model = Some(self.dir.join("llama-tiny"));
        settings.data = Some(self.dir.join("task/train.jsonl"));
        settings.valid = Some(self.dir.join("task/valid.jsonl"));
        settings.output = Some(tl.clone());
        settings.max_steps = Some(60);
        settings.global_batch = Some(32);
        settings.batch_size = Some(32);
        settings.eval_every = Some(20);
        settings.lr = Some(0.02);
        let options = RunOptions::new(self.dir.join("words.run"));
        let device = tlkit::model::device(None)?;
        let run = TrainingRun::open(settings.resolve()?, options, &device)?;
        let report = run.run(&mut (), Progress::new())?;
        let loss = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
        self.step(
            "train --model llama-tiny --data task/train.jsonl --valid task/valid.jsonl \
             --method tl6 --max-steps 60 --global-batch 32 --lr 0.02 -o words.tl",
            format!(
                "validation loss {} → {} nats per token with {} trained numbers, {}",
                loss(report.initial_valid_loss),
                loss(report.valid_loss),
                count(report.parameters),
                bytes(report.bytes)
            ),
        );
        Ok(tl)
    }

    fn convert(&mut self, base: &Checkpoint) -> Result<()> {
        let tl = self.dir.join("style.tl");
        let mut options = ToTiedOptions::default();
        options.base = Some(base);
        let tied = peft_to_tied(&self.dir.join("adapters/style-peft"), &tl, &options)?;
        let lora = peft_to_tied(
            &self.dir.join("adapters/lora"),
            &self.dir.join("lora.tl"),
            &options,
        )?;
        let line = |r: &tlkit::convert::ToTied, what: &str| {
            format!(
                "{what} ({}): {} → {}, largest error of any ΔW {}",
                r.method.name(),
                bytes(r.bytes_before),
                bytes(r.bytes_after),
                number(r.max_relative_error)
            )
        };
        self.step(
            "convert peft-to-tied style-peft -o style.tl",
            line(&tied, "found a tied adapter"),
        );
        self.step(
            "convert peft-to-tied lora -o lora.tl",
            line(&lora, "an ordinary LoRA, kept bit for bit"),
        );
        let file = verify_file(&tl, &NoBlobs)?;
        self.step("verify file style.tl", format!("valid, root {}", file.root));
        Ok(())
    }

    fn inputs(base: &Checkpoint, path: &Path) -> Result<Vec<MergeInput>> {
        Ok(vec![MergeInput::open(path, base, &NoBlobs)?])
    }

    fn merge(&mut self, base: &Checkpoint, tl: &Path) -> Result<PathBuf> {
        let out = self.dir.join("merged");
        let inputs = Self::inputs(base, tl)?;
        let plan = merge::plan(base, &inputs, &PlanOptions::default())?;
        let report = merge::execute(&plan, &out, &ExecOptions::default(), &Control::default())?;
        let survived = report.total.survived.unwrap_or_default();
        let result = format!(
            "{} tensors merged, {} of their elements changed, {} of ΔW survived the rounding to bf16",
            report.total.tensors,
            percent(report.total.changed_share),
            percent(survived)
        );
        self.step("merge llama-tiny words.tl -o merged", result);
        Ok(out)
    }

    fn verify(&mut self, base: &Checkpoint, tl: &Path, merged: &Path) -> Result<()> {
        let merged = Checkpoint::open(merged)?;
        let inputs = Self::inputs(base, tl)?;
        let report = verify_merged(
            base,
            &inputs,
            &merged,
            &PlanOptions::default(),
            &Control::default(),
        )?;
        expect(
            report.is_equal(0),
            "the merged model is not base plus adapter",
        )?;
        let result = format!(
            "bit for bit base plus adapter (rounding {}); {} other tensors byte-equal",
            report.obeys.map_or("-".to_owned(), |o| o.to_string()),
            report.tensors_untouched
        );
        self.step(
            "verify merged --base llama-tiny --adapter words.tl --merged merged",
            result,
        );
        Ok(())
    }

    /// Exports to PEFT, merges the export, and compares the bytes.
    fn same_from_peft(&mut self, base: &Checkpoint, tl: &Path, merged: &Path) -> Result<()> {
        let peft = self.dir.join("words-exported");
        let report = tied_to_peft(tl, &peft, &NoBlobs, Some(base), &ExportOptions::default())?;
        self.step(
            "convert tied-to-peft words.tl -o words-exported",
            format!(
                "PEFT LoRA, {} tensors: {} → {}",
                report.tensors,
                bytes(report.bytes_before),
                bytes(report.bytes_after)
            ),
        );
        let inputs = Self::inputs(base, &peft)?;
        let plan = merge::plan(base, &inputs, &PlanOptions::default())?;
        let again = self.dir.join("merged-from-peft");
        merge::execute(&plan, &again, &ExecOptions::default(), &Control::default())?;
        for shard in base.shards() {
            let name = shard.path().file_name().unwrap_or_default();
            expect(
                same_files(&merged.join(name), &again.join(name))?,
                "merging the export gives other bytes",
            )?;
        }
        self.step(
            "merge llama-tiny words-exported -o merged-from-peft",
            "the same bytes as from the .tl".into(),
        );
        Ok(())
    }

    fn in_place(&mut self, tl: &Path) -> Result<()> {
        let dir = self.dir.join("llama-tiny");
        let before = content(&dir)?;
        let base = Checkpoint::open(&dir)?;
        let inputs = Self::inputs(&base, tl)?;
        let plan = merge::plan(&base, &inputs, &PlanOptions::default())?;
        let undo = self.dir.join("undo");
        merge::merge_in_place(
            &plan,
            &undo,
            &InPlaceOptions::default(),
            &Control::default(),
        )?;
        expect(
            content(&dir)? != before,
            "the merge in place changed nothing",
        )?;
        merge::unmerge(&dir, &undo, &Control::default())?;
        expect(content(&dir)? == before, "unmerge did not restore the base")?;
        self.step(
            "merge llama-tiny words.tl --in-place --undo undo",
            "merged; the original bytes are in the undo file".into(),
        );
        self.step(
            "unmerge llama-tiny --undo undo",
            "every byte of the base is back".into(),
        );
        let digest = encode(&inputs[0].adapter)?.manifest.root();
        expect(
            digest.to_string() == verify_file(tl, &NoBlobs)?.root,
            "the adapter changed",
        )
    }
}

impl Tour<'_> {
    fn store(&mut self, tl: &Path) -> Result<()> {
        let store = Store::init(&show(&self.dir.join("fleet")), store::GRACE)?;
        let name = "alice/words".parse()?;
        let put = store.put(&name, &fleet::package(tl, &NoBlobs)?, None)?;
        let back = self.dir.join("words-again.tl");
        let got = fleet::get(&store, &name, &back, &fleet::GetOptions::default())?;
        expect(got.root == put.root, "the store gave another adapter back")?;
        self.step(
            "store put fleet alice/words words.tl",
            format!(
                "version {} of {} takes {} in the store",
                put.version,
                put.adapter,
                bytes(put.written)
            ),
        );
        self.step(
            "store get fleet alice/words -o words-again.tl",
            "verified, the same root".into(),
        );
        Ok(())
    }

    fn audit(&mut self, tl: &Path) -> Result<()> {
        let paths = ["adapters", "words-exported", "fleet"].map(|name| self.dir.join(name));
        let report = audit::audit(&paths, &audit::AuditOptions::default())?;
        let total = &report.total;
        expect(total.broken == 0, "an adapter could not be audited")?;
        let tl6 = report
            .scenarios
            .iter()
            .find(|s| s.form.name() == "tl6" && s.joint);
        let tl6 = tl6.ok_or_else(|| Error::new(Code::Io, "the demo failed: no LoRA was found"))?;
        let in_tl = fs::metadata(tl)
            .map_err(|e| Error::io(tl, "stat", e))?
            .len();
        self.step(
            "audit adapters words-exported fleet",
            format!(
                "{} adapters take {}; the {} LoRAs among them {}, and {} as tl6 (to be trained anew, \
                 error not measured)\nthe one that was trained here takes {} as .tl, {} as PEFT",
                total.adapters,
                bytes(total.bytes),
                tl6.adapters,
                bytes(tl6.bytes_now),
                bytes(tl6.bytes),
                bytes(in_tl),
                bytes(exported_bytes(&report)),
            ),
        );
        Ok(())
    }
}

fn exported_bytes(report: &audit::Report) -> u64 {
    let exported = report
        .rows
        .iter()
        .filter(|r| r.path.ends_with("words-exported"));
    exported.map(|r| r.bytes).sum()
}

fn expect(holds: bool, otherwise: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::new(
            Code::Io,
            format!("the demo failed: {otherwise}"),
        ))
    }
}

fn same_files(a: &Path, b: &Path) -> Result<bool> {
    let read = |p: &Path| fs::read(p).map_err(|e| Error::io(p, "read", e));
    Ok(read(a)? == read(b)?)
}

fn content(dir: &Path) -> Result<Vec<Vec<u8>>> {
    let files = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    files
        .iter()
        .map(|f| fs::read(dir.join(f)).map_err(|e| Error::io(dir, "read", e)))
        .collect()
}
