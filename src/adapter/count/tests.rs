use super::*;
use Method::{Lora, Tl1, Tl2, Tl3, Tl4, Tl5, Tl6, Vera};

const SEVEN_B: Shape = Shape {
    layers: 32,
    input: 4096,
    outs: [4096; 3],
};
const TWO_B: Shape = Shape {
    layers: 24,
    input: 2048,
    outs: [2048; 3],
};
const TASKS: [&str; 5] = ["dialogsum", "gsm8k", "hellaswag", "iwslt2017", "squad"];

/// Section, method, and for each task the rank and P% in tenths.
type Row = (&'static str, Method, [u64; 5], [u64; 5]);

/// The paper's Table 2: LLaMA2-7B, then GPT-2B-001. P% is of the LoRA in the same column.
#[rustfmt::skip]
const TABLE: [(Shape, &str, [Row; 15]); 2] = [
    (SEVEN_B, "LLaMA2-7B", [
        ("same_rank", Lora, [8, 64, 16, 8, 2], [1000, 1000, 1000, 1000, 1000]),
        ("same_rank", Vera, [8, 64, 16, 8, 2], [94, 12, 47, 94, 375]),
        ("same_rank", Tl1, [8, 64, 16, 8, 2], [8, 8, 8, 8, 8]),
        ("same_rank", Tl2, [8, 64, 16, 8, 2], [102, 20, 55, 102, 383]),
        ("same_rank", Tl3, [8, 64, 16, 8, 2], [23, 23, 23, 23, 23]),
        ("same_rank", Tl4, [8, 64, 16, 8, 2], [23, 23, 23, 23, 23]),
        ("same_rank", Tl5, [8, 64, 16, 8, 2], [31, 31, 31, 31, 31]),
        ("same_rank", Tl6, [8, 64, 16, 8, 2], [125, 43, 78, 125, 406]),
        ("best_rank", Vera, [64, 16, 2, 16, 2], [94, 12, 47, 94, 375]),
        ("best_rank", Tl1, [16, 16, 4, 64, 2], [16, 2, 2, 63, 8]),
        ("best_rank", Tl2, [64, 16, 2, 128, 2], [157, 14, 48, 220, 382]),
        ("best_rank", Tl3, [8, 4, 8, 16, 8], [23, 1, 12, 47, 94]),
        ("best_rank", Tl4, [16, 8, 4, 16, 4], [47, 3, 6, 47, 47]),
        ("best_rank", Tl5, [8, 64, 16, 16, 4], [31, 31, 31, 63, 63]),
        ("best_rank", Tl6, [16, 64, 64, 32, 4], [156, 43, 172, 219, 438]),
    ]),
    (TWO_B, "GPT-2B-001", [
        ("same_rank", Lora, [4, 64, 64, 128, 32], [1000, 1000, 1000, 1000, 1000]),
        ("same_rank", Vera, [4, 64, 64, 128, 32], [188, 12, 12, 6, 23]),
        ("same_rank", Tl1, [4, 64, 64, 128, 32], [10, 10, 10, 10, 10]),
        ("same_rank", Tl2, [4, 64, 64, 128, 32], [198, 22, 22, 16, 34]),
        ("same_rank", Tl3, [4, 64, 64, 128, 32], [31, 31, 31, 31, 31]),
        ("same_rank", Tl4, [4, 64, 64, 128, 32], [31, 31, 31, 31, 31]),
        ("same_rank", Tl5, [4, 64, 64, 128, 32], [42, 42, 42, 42, 42]),
        ("same_rank", Tl6, [4, 64, 64, 128, 32], [229, 53, 53, 48, 65]),
        ("best_rank", Vera, [8, 2, 2, 2, 2], [188, 12, 12, 6, 23]),
        ("best_rank", Tl1, [8, 4, 4, 2, 2], [21, 1, 1, 1, 1]),
        ("best_rank", Tl2, [8, 4, 2, 2, 4], [201, 12, 12, 6, 25]),
        ("best_rank", Tl3, [16, 8, 4, 4, 4], [125, 4, 2, 1, 4]),
        ("best_rank", Tl4, [32, 32, 4, 8, 8], [251, 16, 2, 2, 8]),
        ("best_rank", Tl5, [8, 128, 32, 64, 16], [83, 83, 21, 21, 21]),
        ("best_rank", Tl6, [32, 16, 32, 128, 64], [522, 22, 33, 48, 108]),
    ]),
];

/// The cells that the paper misprints, with P% as it should be, in tenths.
#[rustfmt::skip]
const MISPRINTS: [(&str, &str, &str, Method, u64, u64); 7] = [
    ("LLaMA2-7B", "best_rank", "squad", Tl2, 2, 383),
    ("GPT-2B-001", "same_rank", "squad", Vera, 32, 24),
    ("GPT-2B-001", "same_rank", "gsm8k", Tl6, 64, 54),
    ("GPT-2B-001", "same_rank", "hellaswag", Tl6, 64, 54),
    ("GPT-2B-001", "best_rank", "iwslt2017", Tl1, 2, 0),
    ("GPT-2B-001", "best_rank", "dialogsum", Tl2, 8, 209),
    ("GPT-2B-001", "best_rank", "squad", Tl6, 64, 107),
];

/// Breaks where a method counts what it does not train, or a tied tensor more than once.
#[test]
fn the_papers_table_2() {
    let (mut cells, mut disagree) = (0, Vec::new());
    for (shape, model, rows) in TABLE {
        let lora = rows[0].2;
        for (section, method, ranks, printed) in rows {
            for (i, task) in TASKS.iter().enumerate() {
                let whole = shape.parameters(Lora, lora[i]).unwrap();
                let part = shape.parameters(method, ranks[i]).unwrap();
                let percent = percent_tenths(part, whole).unwrap();
                cells += 1;
                if percent != printed[i] {
                    disagree.push((model, section, *task, method, ranks[i], percent));
                }
            }
        }
    }
    assert_eq!(cells, 150);
    disagree.sort_unstable();
    let mut misprints = MISPRINTS;
    misprints.sort_unstable();
    assert_eq!(disagree, misprints);
}

/// Breaks where the table above is not the one that the paper prints.
#[test]
#[allow(clippy::print_stderr)]
fn the_table_is_the_reference_one() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../shared/reference/tied-lora-table2.csv"
    );
    let Ok(text) = std::fs::read_to_string(path) else {
        eprintln!("skipped: no {path}");
        return;
    };
    let mut reference: Vec<Vec<String>> = text
        .lines()
        .skip(1)
        .map(|line| line.to_lowercase().split(',').map(str::to_owned).collect())
        .map(|mut row: Vec<String>| {
            row.remove(5); // the score
            let tenths = row[5].parse::<f64>().unwrap() * 10.0;
            row[5] = tenths.round().to_string();
            row
        })
        .collect();
    let mut own = Vec::new();
    for (_, model, rows) in TABLE {
        for (section, method, ranks, printed) in rows {
            for (i, task) in TASKS.iter().enumerate() {
                let (rank, percent) = (ranks[i].to_string(), printed[i].to_string());
                let model = model.to_lowercase();
                let row = [&model, section, task, method.name(), &rank, &percent];
                own.push(row.map(str::to_owned).to_vec());
            }
        }
    }
    own.sort();
    reference.sort();
    assert_eq!(own, reference);
}

/// Breaks where k and v, narrower with grouped-query attention, count as wide as q.
#[test]
fn grouped_query_attention() {
    let shape = Shape {
        layers: 2,
        input: 10,
        outs: [12, 4, 4],
    };
    let counts = Method::PRESETS.map(|m| shape.parameters(m, 3).unwrap());
    assert_eq!(counts, [180, 46, 30, 76, 60, 66, 90, 136]);
    assert_eq!(
        shape
            .template(&[FactorName::B, FactorName::V], false, 3)
            .unwrap(),
        160
    );
}

/// Breaks where a count wraps around, or a limit is not kept.
#[test]
fn impossible_requests_are_refused() {
    let code = |shape: Shape, method, rank| shape.parameters(method, rank).unwrap_err().code();
    let huge = Shape {
        input: u64::MAX,
        ..SEVEN_B
    };
    let many = Shape {
        layers: MAX_LAYERS as u64 + 1,
        ..SEVEN_B
    };
    let wide = Shape {
        outs: [u64::MAX; 3],
        ..SEVEN_B
    };
    for (shape, method, rank) in [
        (huge, Tl1, 2),
        (huge, Lora, 1),
        (wide, Vera, 1),
        (many, Tl1, 1),
        (SEVEN_B, Tl1, 0),
        (SEVEN_B, Tl1, MAX_RANK as u64 + 1),
        (SEVEN_B, Method::Custom, 1),
    ] {
        assert_eq!(code(shape, method, rank), Code::Usage, "{shape:?} {rank}");
    }
    assert_eq!(percent_tenths(1, 0), None);
    assert_eq!(percent_tenths(u64::MAX, 1), None);
    assert_eq!(percent_tenths(1, 16), Some(63)); // 6.25 is a tie
}

/// Breaks where a core is counted once for all layers, or as a vector.
#[test]
fn a_core_is_a_square_for_each_layer() {
    let count = |trains: &[FactorName], rank| SEVEN_B.template(trains, true, rank).unwrap();
    assert_eq!(count(&[FactorName::C], 64), 32 * 64 * 64);
    assert_eq!(
        count(&[FactorName::A, FactorName::B, FactorName::C], 8),
        4 * 4096 * 8 + 32 * 64
    );
}

/// Breaks where a config's defaults are not those of transformers.
#[test]
fn shapes_of_configs() {
    let shape = |text: &str| Shape::from_config(text.as_bytes());
    let base = r#""num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 4"#;
    for (more, outs) in [
        ("", [12; 3]),
        (
            r#", "num_key_value_heads": null, "head_dim": null"#,
            [12; 3],
        ),
        (r#", "num_key_value_heads": 2"#, [12, 6, 6]),
        (r#", "num_key_value_heads": 1, "head_dim": 8"#, [32, 8, 8]),
    ] {
        let expected = Shape {
            layers: 2,
            input: 12,
            outs,
        };
        assert_eq!(shape(&format!("{{{base}{more}}}")).unwrap(), expected);
        let nested = format!(r#"{{"hidden_size": 1, "text_config": {{{base}{more}}}}}"#);
        assert_eq!(shape(&nested).unwrap(), expected);
    }
    for text in [
        "",
        "[]",
        "{}",
        r#"{"num_hidden_layers": 2, "hidden_size": 12}"#,
        r#"{"num_hidden_layers": 0, "hidden_size": 12, "num_attention_heads": 4}"#,
        r#"{"num_hidden_layers": 2, "hidden_size": 1.5, "num_attention_heads": 4}"#,
        r#"{"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 5}"#,
        r#"{"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 4,
            "head_dim": 18446744073709551615}"#,
    ] {
        assert_eq!(shape(text).unwrap_err().code(), Code::ModelConfig, "{text}");
    }
}
