use std::fs;
use std::path::PathBuf;

use super::{Shell, assert_transcript};
use tlkit::tensor::Tensor;

/// A key pair of RFC 8410, section 10.3, and a public key of nobody.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
const OTHER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

/// As wide as a model has to be for its factors to be longer than what records take in.
const WIDE: usize = 2048;

/// A folder with a store, and keys.
fn shell() -> Shell {
    let shell = Shell::new();
    for (name, text) in [
        ("key.pem", PRIVATE),
        ("public.pem", PUBLIC),
        ("other.pem", OTHER),
    ] {
        fs::write(shell.path(name), text).unwrap();
    }
    shell.ok("store init store");
    shell
}

/// A LoRA called `name` whose factors are long enough to be objects of their own.
fn wide(shell: &Shell, name: &str) {
    shell.adapter("lora", name, "\"r\"", "\"r\"");
    let weights = format!("{name}/adapter_model.safetensors");
    let mut tensors = shell.tensors(&weights);
    tensors.retain(|(n, _)| n.contains("layers.0.self_attn.q_proj"));
    for (name, tensor) in &mut tensors {
        let rank = tensor.shape().iter().copied().min().unwrap();
        let shape = match name.contains("lora_A") {
            true => vec![rank, WIDE],
            false => vec![WIDE, rank],
        };
        let values: Vec<f32> = (0..rank * WIDE).map(|n| n as f32 * 1e-6).collect();
        *tensor = Tensor::from_f32(shape, &values).unwrap();
    }
    shell.write(&weights, &tensors);
}

/// The files of the store below a folder.
fn objects(shell: &Shell, below: &str) -> Vec<PathBuf> {
    let folder = shell.path(below);
    let files = shell.files().into_iter();
    let files = files.filter(|(path, _)| path.starts_with(&folder) && path.is_file());
    files.map(|(path, _)| path).collect()
}

fn flip_last_byte(path: &PathBuf) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Breaks where a command of the store says something else, or an adapter comes back as another.
#[test]
fn a_store_from_beginning_to_end() {
    let mut shell = Shell::new();
    shell.run("store init store --grace 0s");
    shell.run("store put store alice/style style.tl");
    shell.run("store put store alice/style style.tl");
    shell.run("store put store alice/style lora --base base");
    shell.run("store put store bob/vera vera");
    shell.run("store tag store alice/style@1 prod");
    shell.run("store list store");
    shell.run("store list store bob");
    shell.run("store history store alice/style");
    shell.run("store get store alice/style:prod -o again.tl");
    assert_eq!(
        fs::read(shell.path("again.tl")).unwrap(),
        fs::read(shell.path("style.tl")).unwrap()
    );
    shell.run("store stat store");
    shell.run("store stat store bob");
    shell.run("store tag store alice/style prod --delete");
    shell.run("store gc store --keep 1 --dry-run");
    shell.run("store gc store --keep 1");
    shell.run("store rm store bob/vera");
    shell.run("store get store bob/vera -o vera.tl");
    shell.run("store gc store");
    shell.run("store fsck store");
    shell.run("store list store");
    assert_transcript!(shell);
}

/// Breaks where a form of an adapter out of the store is another adapter.
#[test]
fn an_adapter_in_every_form() {
    let mut shell = shell();
    shell.ok("convert peft-to-tied vera -o vera.tl");
    shell.run("store publish store style.tl vera.tl");
    shell.run("store publish store style");
    shell.run("store put store alice/style style.tl");
    shell.run("store get store alice/style -o thin.tl --thin --blobs blobs");
    shell.run("store get store alice/style -o both.tl --thin --zstd --blobs blobs");
    shell.run("store get store alice/style -o small.tl --zstd");
    shell.run("store get store alice/style -o peft --peft");
    for line in ["thin.tl --blobs blobs", "both.tl --blobs blobs", "small.tl"] {
        shell.ok(&format!("pack {line} -o fat.tl --force"));
        let (fat, style) = (shell.path("fat.tl"), shell.path("style.tl"));
        assert_eq!(fs::read(fat).unwrap(), fs::read(style).unwrap(), "{line}");
    }
    shell.ok("convert tied-to-peft style.tl -o export");
    let weights = "adapter_model.safetensors";
    assert_eq!(
        fs::read(shell.path("peft").join(weights)).unwrap(),
        fs::read(shell.path("export").join(weights)).unwrap()
    );
    // What a thin file leaves out is in the store, or in a folder.
    shell.run("store put store bob/thin thin.tl");
    shell.ok("store init other");
    shell.run("store put other bob/thin thin.tl");
    shell.run("store put other bob/thin thin.tl --blobs blobs");
    shell.ok("store put store carol/vera vera");
    shell.ok("store get store carol/vera -o carol.tl");
    assert_eq!(
        fs::read(shell.path("carol.tl")).unwrap(),
        fs::read(shell.path("vera.tl")).unwrap()
    );
    assert_transcript!(shell);
}

/// Breaks where a failure has another code, is not one line, or writes something.
#[test]
fn failures_of_the_store_write_nothing() {
    let mut shell = shell();
    fs::create_dir(shell.path("empty")).unwrap();
    shell.ok("store put store alice/style style.tl");
    shell.ok("store put store alice/signed style.tl --sign key.pem");
    shell.ok("store get store alice/signed -o signed.tl --require-signature other.pem --require-signature public.pem");
    shell.ok("store quota store bob 1kB");
    fs::write(shell.path("exists.tl"), "x").unwrap();
    let before = shell.files();
    for (line, code, exit) in [
        ("init store", "TL0003", 3),
        ("list absent", "TL0702", 3),
        ("list empty", "TL0702", 3),
        ("list memory:", "TL0702", 3),
        ("list ftp://host/store", "TL0701", 2),
        ("list s3://key:secret@bucket/store", "TL0701", 2),
        ("init s3://key:secret@bucket/store", "TL0701", 2),
        ("put store ../x/y style.tl", "TL0703", 2),
        ("put store Alice/x style.tl", "TL0703", 2),
        ("put store alice style.tl", "TL0703", 2),
        ("put store alice/x@2 style.tl", "TL0703", 2),
        ("put store alice/x absent.tl", "TL0002", 3),
        ("put store alice/x base", "TL0303", 4),
        ("put store alice/x style.tl --sign public.pem", "TL0712", 4),
        ("put store bob/style style.tl", "TL0710", 6),
        ("list store Alice", "TL0703", 2),
        ("stat store nobody", "TL0704", 3),
        ("get store alice/none -o out.tl", "TL0704", 3),
        ("get store alice/style@7 -o out.tl", "TL0704", 3),
        ("get store alice/style:prod -o out.tl", "TL0704", 3),
        ("get store alice/style -o exists.tl", "TL0003", 3),
        (
            "get store alice/style -o exists.tl --thin --blobs blobs",
            "TL0003",
            3,
        ),
        ("get store alice/style -o no/out.tl", "TL0002", 3),
        ("get store alice/style -o style --peft", "TL0003", 3),
        (
            "get store alice/style -o out.tl --require-signature public.pem",
            "TL0711",
            4,
        ),
        (
            "get store alice/signed -o out.tl --require-signature other.pem",
            "TL0711",
            4,
        ),
        (
            "get store alice/signed -o out.tl --require-signature key.pem",
            "TL0712",
            4,
        ),
        ("history store alice/none", "TL0704", 3),
        ("tag store alice/style prod --delete", "TL0704", 3),
        ("tag store alice/style Prod", "TL0703", 2),
        ("rm store alice/none", "TL0704", 3),
        ("export store -o out --user nobody", "TL0704", 3),
    ] {
        let run = shell.run(&format!("store {line}"));
        let first = run.stderr.lines().next().unwrap_or_default();
        assert!(!run.stderr.contains("secret"), "{line}");
        assert!(
            first.starts_with(&format!("error[{code}]: ")),
            "{line}: {}",
            run.stderr
        );
        assert_eq!((run.code, run.stdout.as_str()), (exit, ""), "{line}");
        assert!(shell.files() == before, "{line} wrote something");
        let json = shell.quiet(&format!("--json store {line}"));
        let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(json["error"]["code"], code, "{line}");
    }
    assert_transcript!(shell);
}

/// Breaks where damage goes unnoticed, is blamed on another adapter, or outlives a good copy.
#[test]
fn damage_is_found_and_mended() {
    let mut shell = shell();
    wide(&shell, "wide");
    shell.ok("store publish store style.tl");
    shell.ok("store put store alice/chat wide");
    shell.ok("store put store bob/style style.tl");
    shell.ok("store put store carol/vera vera");
    shell.ok("store put store dave/lora lora");
    let good = objects(&shell, "store");
    let blobs = objects(&shell, "store/tenants/alice/blobs");
    flip_last_byte(&blobs[0]);
    fs::remove_file(&objects(&shell, "store/public")[0]).unwrap();
    flip_last_byte(objects(&shell, "store/tenants/carol").last().unwrap());
    let run = shell.run("store fsck store");
    assert_eq!(run.code, 4);
    for name in ["alice/chat@1", "bob/style@1", "carol/vera@1"] {
        assert!(run.stdout.contains(name), "{name}: {}", run.stdout);
    }
    let json = shell.quiet("--json store fsck store alice");
    assert_eq!(json.code, 4);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json["problems"][0]["adapter"], "chat@1");
    let before = shell.files();
    shell.run("store get store alice/chat -o chat.tl");
    shell.run("store get store bob/style -o style2.tl --thin --blobs blobs");
    shell.run("store get store carol/vera -o vera.tl");
    assert!(shell.files() == before, "a damaged adapter was written");
    shell.run("store list store");
    // The whole ones go on.
    let run = shell.run("store export store -o fleet");
    assert_eq!(run.code, 4);
    assert_eq!(objects(&shell, "fleet"), [shell.path("fleet/dave/lora.tl")]);
    shell.run("store put store alice/chat wide");
    shell.run("store put store bob/style style.tl");
    shell.run("store put store carol/vera vera");
    assert!(good.iter().all(|path| path.is_file()));
    for line in [
        "alice/chat -o chat.tl",
        "bob/style -o b.tl",
        "carol/vera -o vera.tl",
    ] {
        shell.ok(&format!("store get store {line}"));
    }
    assert_transcript!(shell);
}

/// Breaks where an export lacks an adapter, or holds shared blobs more than once.
#[test]
fn a_store_as_files() {
    let mut shell = shell();
    shell.ok("store publish store style.tl");
    shell.ok("store put store alice/style style.tl");
    shell.ok("store put store blobs/style style.tl");
    shell.ok("store put store bob/vera vera");
    shell.run("store export store -o fat");
    shell.run("store export store -o thin --thin");
    shell.run("store export store -o thin --thin --user bob");
    shell.run("store export store -o thin --thin --force");
    let style = fs::read(shell.path("style.tl")).unwrap();
    assert_eq!(fs::read(shell.path("fat/alice/style.tl")).unwrap(), style);
    shell.ok("pack thin/blobs/style.tl -o again.tl --blobs thin/blobs");
    assert_eq!(fs::read(shell.path("again.tl")).unwrap(), style);
    assert_transcript!(shell);
}

/// Breaks where a quota is not that of its user, or cannot be taken back.
#[test]
fn quotas() {
    let mut shell = shell();
    shell.run("store quota store");
    shell.run("store quota store --default 10kB");
    shell.run("store put store alice/style style.tl");
    shell.run("store put store alice/second style.tl");
    shell.run("store quota store alice 5MB");
    shell.run("store put store alice/second style.tl");
    shell.run("store quota store");
    shell.run("store quota store alice none");
    shell.run("store quota store --default none");
    assert_transcript!(shell);
}

/// Breaks where a coded adapter is not what its numbers are in F32, for any command that takes adapters.
#[test]
fn coded_adapters_are_like_any_other() {
    let shell = shell();
    let json = |line: &str| -> serde_json::Value {
        let run = shell.quiet(&format!("{line} --json"));
        assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        serde_json::from_str(&run.stdout).unwrap()
    };
    let put = json("store put store ann/sum lora --code 0.05");
    assert!(put["error"].as_f64().unwrap() <= 0.05 && put["bits"].as_f64() > put["bound"].as_f64());
    let packed = json("pack lora -o packed.tl --error 0.05");
    assert_eq!(
        (&put["root"], &put["coded_bytes"]),
        (&packed["root"], &packed["bytes_after"])
    );
    // Coded again it would be off from what nobody has any more.
    let again = json("store put store ann/sum packed.tl --code 0.1");
    assert_eq!(
        (&again["root"], &again["unchanged"]),
        (&put["root"], &true.into())
    );
    shell.ok("store put store bob/sum lora");
    shell.ok("store fsck store");
    shell.ok("store list store ann");
    shell.ok("store get store ann/sum -o coded.tl");
    assert_eq!(
        fs::read(shell.path("coded.tl")).unwrap(),
        fs::read(shell.path("packed.tl")).unwrap()
    );
    let got = json("store get store bob/sum -o got.tl --code 0.05");
    assert_eq!(got["root"], put["root"]);
    shell.ok("store export store -o all --code 0.05");
    assert_eq!(
        fs::read(shell.path("all/bob/sum.tl")).unwrap(),
        fs::read(shell.path("coded.tl")).unwrap()
    );
    shell.ok("store export store -o served --peft");
    let rows = json("audit store --fit");
    let dtypes: Vec<_> = (0..2)
        .map(|n| rows["rows"][n]["dtype"].as_str().unwrap())
        .collect();
    assert_eq!(dtypes, ["coded", "F32"]);
    assert_eq!(rows["scenarios"][1]["name"], "coded-5");

    shell.ok("pack coded.tl -o floats.tl --dtype f32");
    shell.ok("verify adapters coded.tl served/ann/sum --tolerance 0");
    let few = "{\"prompt\":\"say \",\"completion\":\"a\"}\n";
    fs::write(shell.path("few.jsonl"), few).unwrap();
    for adapter in ["coded", "floats"] {
        for line in [
            "merge base {}.tl -o {}/merged",
            "merge base {}.tl=0.5 style.tl -o {}/ties --method ties --density 0.5",
            "combine {}.tl=0.5 style.tl -o {}/cat.tl",
            "combine {}.tl style.tl -o {}/svd.tl --method svd --rank 4",
            "convert tied-to-gguf {}.tl -o {}/gguf --base base",
            "convert tied-to-mlx {}.tl -o {}/mlx --base base",
            "convert tied-to-peft {}.tl -o {}/peft --portable",
            "check base {}.tl",
            "inspect {}.tl --tensors",
            "verify file {}.tl",
            "verify logits --base base --adapter {}.tl --merged {}/merged --text say",
            "eval --model base --adapter {}.tl --data few.jsonl --task summarization --max-tokens 2",
        ] {
            fs::create_dir_all(shell.path(adapter)).unwrap();
            shell.ok(&line.replace("{}", adapter));
        }
    }
    let said = ["coded", "floats"].map(|adapter| {
        let line = "generate --model base --adapter {}.tl --max-tokens 3 --prompt say";
        let run = shell.quiet(&line.replace("{}", adapter));
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout
    });
    assert_eq!(said[0], said[1]);
    for file in [
        "merged/model-00001-of-00002.safetensors",
        "merged/model-00002-of-00002.safetensors",
        "ties/model-00001-of-00002.safetensors",
        "mlx/adapters.safetensors",
        "peft/adapter_model.safetensors",
    ] {
        let bytes = |of: &str| fs::read(shell.path(&format!("{of}/{file}"))).unwrap();
        assert!(bytes("coded") == bytes("floats"), "{file}");
    }
    for file in ["cat.tl", "svd.tl"] {
        shell.ok(&format!(
            "verify adapters coded/{file} floats/{file} --tolerance 0"
        ));
    }
    let tail = |of: &str| {
        let bytes = fs::read(shell.path(&format!("{of}/gguf"))).unwrap();
        bytes[bytes.len() - 4096..].to_vec()
    };
    assert!(tail("coded") == tail("floats"), "GGUF");
}

/// Breaks where one broken adapter ends an import, a name is given twice or made up, or a second run stores again what
/// is there.
#[test]
fn a_tree_of_adapters_is_imported() {
    let mut shell = shell();
    for (from, to) in [
        ("lora", "fleet/ann/sum"),
        ("vera", "fleet/ann/qa"),
        ("lora", "fleet/bob/sum"),
        ("lora", "fleet/bob/cut"),
        ("lora", "fleet/Eve/sum"),
        ("lora", "fleet/ann/sum/checkpoint-5"),
    ] {
        super::copy_dir(&shell.path(from), &shell.path(to));
    }
    fs::copy(shell.path("style.tl"), shell.path("fleet/bob/style.tl")).unwrap();
    fs::write(
        shell.path("fleet/bob/cut/adapter_model.safetensors"),
        [1; 20],
    )
    .unwrap();
    let before = objects(&shell, "store");
    shell.run("store import store fleet --template {user}/{task} --dry-run");
    assert_eq!(objects(&shell, "store"), before);
    shell.run("store import store fleet --template {user}/{task}");
    let again = shell.quiet("store import store fleet --template {user}/{task} --json");
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!(
        (&again["put"], &again["unchanged"], &again["written"]),
        (&0.into(), &4.into(), &0.into())
    );
    shell.run("store import store fleet/ann --template {task} --code 0.05");
    fs::write(
        shell.path("owners.csv"),
        "path,user,task\nann/sum,kim,sum\nbob/sum,kim,other\n",
    )
    .unwrap();
    let coded = shell.quiet("store import store fleet --owners owners.csv --code 0.05 --json");
    let coded: serde_json::Value = serde_json::from_str(&coded.stdout).unwrap();
    assert_eq!((&coded["put"], &coded["failed"]), (&2.into(), &5.into()));
    assert!(coded["largest_error"].as_f64().unwrap() <= 0.05);
    let row = &coded["rows"].as_array().unwrap()[2];
    assert!(row["bound"].as_f64() < row["bits"].as_f64(), "{row}");
    shell.ok("store fsck store");
    shell.run("store list store");
    assert_transcript!(shell);
}
