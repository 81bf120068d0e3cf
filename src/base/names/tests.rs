//! Names of classes and of disks, by what transformers makes of one of the other.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;

use super::*;
use crate::base::cut::{Flip, Piece};

fn known<'n>(names: &[&'n str]) -> HashMap<&'n str, usize> {
    names.iter().enumerate().map(|(i, n)| (*n, i)).collect()
}

/// Breaks where one name found alone is another tensor than the whole adapter's merge would find.
#[test]
fn one_by_one_the_names_are_found_as_all_together_are() {
    let base = known(&["h.0.attn.q.weight", "h.1.attn.q.weight", "wte.weight"]);
    let architecture = Architecture::default();
    let names = Names::new(&base, &architecture);
    let wanted = ["transformer.h.0.attn.q", "transformer.h.1.attn.q"];
    let wanted = wanted.map(|n| format!("{n}.weight"));
    let together = names.resolve(&wanted, &[], |_| false).unwrap();
    let finder = Finder::default();
    let alone: Vec<_> = wanted.iter().map(|n| finder.find(&names, n)).collect();
    assert_eq!(alone, together);
    assert_eq!(alone, [Some(Found::whole(0)), Some(Found::whole(1))]);
    assert_eq!(finder.find(&names, "wte.weight"), Some(Found::whole(2)));
    // The rewrite is the adapter's: no name gets another.
    assert_eq!(finder.find(&names, "attn.q.weight"), None);
}

#[test]
fn of_two_that_could_be_meant_none_is_found() {
    let base = known(&["text.layers.0.q.weight", "vision.layers.0.q.weight"]);
    let architecture = Architecture::default();
    let names = Names::new(&base, &architecture);
    let finder = Finder::default();
    assert_eq!(finder.find(&names, "layers.0.q.weight"), None);
    let exact = finder.find(&names, "text.layers.0.q.weight");
    assert_eq!(exact, Some(Found::whole(0)));
    let e = names
        .resolve(&["layers.0.q.weight".to_owned()], &[], |_| false)
        .unwrap_err();
    assert_eq!(e.code(), Code::AmbiguousModule);
}

/// Breaks where a name of the disk is another one in the class than transformers makes of it. The cases are
/// those that `tests/peft/names.py` wrote to the file that `TLKIT_NAMES` names; without it, none.
#[test]
fn names_are_what_transformers_makes_of_them() {
    let Some(path) = std::env::var_os("TLKIT_NAMES") else {
        return;
    };
    let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let text = |v: &serde_json::Value| v.as_str().unwrap().to_owned();
    let (mut checked, mut wrong, mut unknown) = (0, Vec::new(), Vec::new());
    for case in cases.as_array().unwrap() {
        let class = text(&case["class"]);
        let architecture = Architecture::of_config(Some(&case["config"]));
        if !architecture.is_class_known() {
            unknown.push(format!("{class} is not in the table"));
            continue;
        }
        let prefix = text(&case["prefix"]);
        let rows = case["rows"].as_array().unwrap();
        let same = |a: &str, b: &str| {
            // Loading strips a prefix that the rules have added twice.
            let start = format!("{prefix}.");
            let inner = |n: &str| n.trim_start_matches(start.as_str()).to_owned();
            inner(a) == inner(b)
        };
        for row in rows {
            let (disk, want) = (text(&row[0]), text(&row[1]));
            let links = architecture.links(&disk);
            if links.iter().any(|l| l.unknown.is_some()) {
                unknown.push(format!("{class} {disk}"));
            } else if !same(&links[0].class, &want) {
                wrong.push(format!("{class} {disk}: {} and not {want}", links[0].class));
            }
            checked += 1;
        }
        let disk: Vec<String> = rows.iter().map(|row| text(&row[0])).collect();
        let loaded: Vec<String> = rows.iter().map(|row| text(&row[1])).collect();
        let base: HashMap<&str, usize> = disk.iter().map(String::as_str).zip(0..).collect();
        let names = Names::new(&base, &architecture);
        for name in case["class_names"].as_array().unwrap() {
            let name = text(name);
            let inner = name.strip_prefix(&format!("{prefix}.")).unwrap_or(&name);
            let outer = format!("{prefix}.{name}");
            let answers = [&name, inner, &outer].map(|n| names.by_class().find(n));
            // transformers does not read all that it writes.
            let reached = loaded.iter().any(|l| same(l, &name));
            let told = unknown.iter().any(|u| u.starts_with(&format!("{class} ")));
            if reached && !told && answers.iter().all(|a| *a == Answer::Missing) {
                wrong.push(format!("{class} {name} is not found"));
            }
        }
    }
    unknown.dedup_by_key(|u| u.split(' ').next().unwrap_or_default().to_owned());
    println!("{checked} names; unknown operations: {unknown:#?}");
    assert!(
        wrong.is_empty(),
        "{} wrong: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(60)]
    );
    assert!(checked > 10_000, "{checked}");
}

fn architecture(config: serde_json::Value) -> Architecture {
    Architecture::of_config(Some(&config))
}

/// Where one name leads; `Err` by its code.
fn lead(
    disk: &[&str],
    config: &serde_json::Value,
    name: &str,
) -> std::result::Result<Found<usize>, Code> {
    let base = known(disk);
    let architecture = architecture(config.clone());
    let names = Names::new(&base, &architecture);
    let found = names.resolve(&[name.to_owned()], &[], |_| false);
    let alone = Finder::default().find(&names, name);
    let found = found.map_err(|e| e.code())?.pop().flatten().unwrap();
    assert_eq!(alone.as_ref(), Some(&found), "{name}");
    Ok(found)
}

/// Breaks where an adapter that a newer or an older transformers saved does not find the tensors of a base that
/// the other has written.
#[test]
fn names_of_the_class_and_of_the_disk_lead_to_one_tensor() {
    let gemma = serde_json::json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"model_type": "gemma3_text"}, "vision_config": {"model_type": "siglip_vision_model"},
    });
    let text = "layers.0.self_attn.q_proj.weight";
    let disk = [
        format!("language_model.model.{text}"),
        format!("vision_tower.vision_model.encoder.{text}"),
    ];
    let disk = disk.each_ref().map(String::as_str);
    for (name, place) in [
        (format!("model.language_model.{text}"), 0),
        (format!("language_model.model.{text}"), 0),
        (format!("language_model.{text}"), 0),
        (format!("model.vision_tower.encoder.{text}"), 1),
        (format!("vision_tower.vision_model.encoder.{text}"), 1),
    ] {
        assert_eq!(
            lead(&disk, &gemma, &name),
            Ok(Found::whole(place)),
            "{name}"
        );
    }
    let mixtral =
        serde_json::json!({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]});
    let old = "model.layers.3.block_sparse_moe.gate.weight";
    let new = "model.layers.3.mlp.gate.weight";
    for (stored, name) in [(old, new), (new, old), (old, old), (new, new)] {
        assert_eq!(
            lead(&[stored], &mixtral, name),
            Ok(Found::whole(0)),
            "{name}"
        );
    }
    let qwen = serde_json::json!({"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]});
    let disk = [
        "model.layers.0.mlp.up_proj.weight",
        "visual.blocks.0.attn.qkv.weight",
    ];
    for (name, place) in [
        ("model.language_model.layers.0.mlp.up_proj.weight", 0),
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.visual.blocks.0.attn.qkv.weight", 1),
        ("visual.blocks.0.attn.qkv.weight", 1),
    ] {
        assert_eq!(lead(&disk, &qwen, name), Ok(Found::whole(place)), "{name}");
    }
}

/// Breaks where a parameter that loading transposes under its own name cannot be told from itself.
#[test]
fn what_keeps_its_name_is_what_the_class_makes_of_it() {
    let config = serde_json::json!({
        "model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    });
    let name = "model.language_model.layers.0.mlp.experts.down_proj";
    let found = lead(&[name], &config, name).unwrap();
    let [piece] = found.pieces[..] else {
        panic!("{found:?}");
    };
    assert_eq!(
        (piece.place, piece.of.flip, piece.at.flip),
        (0, Flip::No, Flip::Unless)
    );
}

/// Breaks where the parts of a fused tensor are other ones than transformers takes, or too few of them pass.
#[test]
fn experts_are_pieces_in_both_directions() {
    let config =
        serde_json::json!({"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]});
    let at = "model.layers.0.mlp.experts";
    let fused = format!("{at}.gate_up_proj");
    let up = |part| Cut {
        index: Some(1),
        chunk: Some(crate::base::cut::Chunk {
            axis: 1,
            part,
            of: 2,
            interleaved: false,
        }),
        ..Cut::WHOLE
    };
    let found = lead(&[&fused], &config, &format!("{at}.1.up_proj.weight")).unwrap();
    let piece = Piece {
        place: 0,
        at: up(1),
        of: Cut::WHOLE,
    };
    assert_eq!(found.pieces, [piece]);
    let names: Vec<String> = (0..2)
        .flat_map(|e| ["gate_proj", "up_proj"].map(|p| format!("{at}.{e}.{p}.weight")))
        .collect();
    let disk: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut found = lead(&disk, &config, &fused).unwrap();
    found.pieces.sort();
    assert_eq!(found.pieces.len(), 4);
    assert_eq!(
        found.pieces[3],
        Piece {
            place: 3,
            at: Cut::WHOLE,
            of: up(1)
        }
    );
    // One is missing.
    assert_eq!(
        lead(&disk[..3], &config, &fused),
        Err(Code::UnmatchedModule)
    );
}

#[test]
fn joint_projections_of_the_disk_are_pieces_of_it() {
    let config =
        serde_json::json!({"model_type": "nomic_bert", "architectures": ["NomicBertModel"]});
    let disk = ["encoder.layers.0.attn.Wqkv.weight"];
    let found = lead(&disk, &config, "layers.0.self_attn.k_proj.weight").unwrap();
    let chunk = crate::base::cut::Chunk {
        axis: 0,
        part: 1,
        of: 3,
        interleaved: false,
    };
    let at = Cut {
        chunk: Some(chunk),
        ..Cut::WHOLE
    };
    assert_eq!(
        found.pieces,
        [Piece {
            place: 0,
            at,
            of: Cut::WHOLE
        }]
    );
    let e = whole_places(&["k".to_owned()], vec![Some(found)]).unwrap_err();
    assert_eq!(e.code(), Code::BaseLayout);
    // The disk's own name is all of it.
    assert_eq!(lead(&disk, &config, disk[0]), Ok(Found::whole(0)));
}

#[test]
fn what_loading_does_besides_is_refused_by_its_name() {
    let config = serde_json::json!({
        "model_type": "mistral_large4", "architectures": ["MistralLarge4ForConditionalGeneration"],
    });
    let base = known(&["vision_encoder.transformer.layers.0.attention.wq.weight"]);
    let architecture = architecture(config);
    let names = Names::new(&base, &architecture);
    let name = "model.vision_tower.transformer.layers.0.attention.q_proj.weight";
    let e = names
        .resolve(&[name.to_owned()], &[], |_| false)
        .unwrap_err();
    assert_eq!(e.code(), Code::BaseLayout);
    assert!(e.to_string().contains("PermuteForRope"), "{e}");
}

/// Breaks where the rename that a hint writes out does not do what it says, or only one of two is written.
#[test]
fn a_hint_writes_out_the_rename_that_works() {
    let base = known(&[
        "text_model.layers.0.q.weight",
        "text_model.layers.1.q.weight",
    ]);
    let architecture = Architecture::default();
    let names = Names::new(&base, &architecture);
    let wanted = ["lm.layers.0.q.weight", "lm.layers.1.q.weight"].map(str::to_owned);
    let e = names.resolve(&wanted, &[], |_| false).unwrap_err();
    let hint = e.hint_text().unwrap();
    let (from, to) = hint.rsplit_once(' ').unwrap().1.split_once('=').unwrap();
    assert_eq!((from, to), ("lm", "text_model"));
    let renames = [(from.to_owned(), to.to_owned())];
    assert!(names.resolve(&wanted, &renames, |_| false).is_ok());
    let two = known(&["a.layers.0.q.weight", "b.layers.0.q.weight"]);
    let e = Names::new(&two, &architecture)
        .resolve(&wanted[..1], &[], |_| false)
        .unwrap_err();
    assert!(e.hint_text().unwrap().ends_with("lm=a or lm=b"), "{e}");
}

/// Breaks where the weight of one expert goes into the other half of a fused parameter, into another order of its
/// halves, or the wrong way round.
#[test]
fn single_experts_are_pieces_of_parameters_without_load_rules() {
    let of = |model_type: &str, class: &str, parent: &str, leaf: &str| {
        let config = serde_json::json!({"model_type": model_type, "architectures": [class]});
        let disk = [
            format!("{parent}.down_proj"),
            format!("{parent}.gate_up_proj"),
        ];
        let disk: Vec<&str> = disk.iter().map(String::as_str).collect();
        let mut found = lead(&disk, &config, &format!("{parent}.2.{leaf}.weight")).unwrap();
        let piece = found.pieces.pop().unwrap();
        assert!(found.pieces.is_empty() && piece.of == Cut::WHOLE);
        let chunk = piece
            .at
            .chunk
            .map(|c| (c.axis, c.part, c.of, c.interleaved));
        (piece.place, piece.at.index, chunk, piece.at.flip)
    };
    let oss = |leaf| {
        of(
            "gpt_oss",
            "GptOssForCausalLM",
            "model.layers.0.mlp.experts",
            leaf,
        )
    };
    let llama = |leaf| {
        let parent = "model.layers.0.feed_forward.experts";
        of("llama4_text", "Llama4ForCausalLM", parent, leaf)
    };
    assert_eq!(
        oss("gate_proj"),
        (1, Some(2), Some((1, 0, 2, true)), Flip::Yes)
    );
    assert_eq!(
        oss("up_proj"),
        (1, Some(2), Some((1, 1, 2, true)), Flip::Yes)
    );
    assert_eq!(oss("down_proj"), (0, Some(2), None, Flip::Yes));
    let listed = |list: &str| {
        let disk = [
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.0.mlp.experts.down_proj",
        ];
        let name = format!("model.layers.0.mlp.experts.{list}.2.weight");
        let mut found = lead(&disk, &oss_config(), &name).unwrap();
        let piece = found.pieces.pop().unwrap();
        assert!(found.pieces.is_empty() && piece.of == Cut::WHOLE);
        (piece.place, piece.at.index, piece.at.chunk, piece.at.flip)
    };
    assert_eq!(listed("gate_up_projs"), (0, Some(2), None, Flip::Yes));
    assert_eq!(listed("down_projs"), (1, Some(2), None, Flip::Yes));
    assert_eq!(
        llama("up_proj"),
        (1, Some(2), Some((1, 1, 2, false)), Flip::Yes)
    );
    assert_eq!(llama("down_proj"), (0, Some(2), None, Flip::Yes));
}

fn oss_config() -> serde_json::Value {
    serde_json::json!({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]})
}

/// Breaks where a parameter of all experts does not find the tensors of single ones that a base of gpt-oss has in its place:
/// gate and up apart, or both in the parameter's order.
#[test]
fn parameters_are_found_in_tensors_of_single_experts() {
    let parent = "model.layers.0.mlp.experts";
    let wanted = format!("{parent}.gate_up_proj");
    let leaves = [
        "0.gate_proj",
        "0.up_proj",
        "1.gate_proj",
        "1.up_proj",
        "0.down_proj",
        "1.down_proj",
    ];
    let apart = leaves.map(|leaf| format!("{parent}.{leaf}.weight"));
    let disk: Vec<&str> = apart.iter().map(String::as_str).collect();
    let found = lead(&disk, &oss_config(), &wanted).unwrap();
    let parts = found.pieces.iter().map(|p| {
        let chunk = p.of.chunk.map(|c| (c.axis, c.part, c.of, c.interleaved));
        assert_eq!((p.at, p.of.flip), (Cut::WHOLE, Flip::Yes));
        (p.place, p.of.index, chunk)
    });
    let mut parts: Vec<_> = parts.collect();
    parts.sort();
    let half = |part| Some((2, part, 2, true));
    assert_eq!(
        parts,
        [
            (0, Some(0), half(0)),
            (1, Some(0), half(1)),
            (2, Some(1), half(0)),
            (3, Some(1), half(1))
        ]
    );
    assert!(lead(&disk[1..], &oss_config(), &wanted).is_err());
    let listed =
        ["gate_up_projs.0", "gate_up_projs.1"].map(|leaf| format!("{parent}.{leaf}.weight"));
    let disk: Vec<&str> = listed.iter().map(String::as_str).collect();
    let found = lead(&disk, &oss_config(), &wanted).unwrap();
    let parts = found.pieces.iter();
    let parts = parts.map(|p| (p.place, p.of.index, p.of.chunk, p.of.flip));
    let mut parts: Vec<_> = parts.collect();
    parts.sort();
    assert_eq!(
        parts,
        [(0, Some(0), None, Flip::Yes), (1, Some(1), None, Flip::Yes)]
    );
}
