use super::{changed, of, refused};
use crate::tensor::Dtype;

/// Breaks where what does not fit MLX's layout, or is said of no weight, is taken for numbers.
#[test]
fn what_no_config_says_is_refused() {
    let said = |group: usize, bits: usize| {
        format!(r#"{{"quantization": {{"group_size": {group}, "bits": {bits}}}}}"#)
    };
    let with = |config: &str| refused(&changed("mlx-4bit", Some(config), |_, _, _, _| true));
    assert!(with("{}").contains("no config says of how many bits"));
    for (group, bits) in [(32, 4), (64, 8), (64, 7), (0, 4), (64, 0), (usize::MAX, 4)] {
        let told = with(&said(group, bits));
        assert!(told.contains("hold no integers"), "{told}");
    }
    for mode in ["mxfp4", "nvfp4", "mxfp8"] {
        let config =
            format!(r#"{{"quantization": {{"group_size": 32, "bits": 4, "mode": "{mode}"}}}}"#);
        let told = with(&config);
        let want = format!("quantised by MLX in the mode `{mode}`, which is not read");
        assert!(told.contains(&want), "{told}");
    }
    let named = r#"{"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"quant_method": "hqq"}}"#;
    assert!(with(named).contains("HQQ"));
    assert_eq!(
        of(changed("mlx-4bit", Some(&said(64, 4)), |_, _, _, _| true).path()).unwrap(),
        2
    );
}

/// Breaks where parts of a weight of MLX are left out, or belong to another kind.
#[test]
fn parts_have_to_be_those_of_affine() {
    for (end, says) in [
        (".biases", "biases are missing"),
        (".scales", "belongs to a quantised weight that is not there"),
        (
            "proj.weight",
            "belongs to a quantised weight that is not there",
        ),
    ] {
        let told = refused(&changed("mlx-4bit", None, |name, _, _, _| {
            !name.ends_with(end)
        }));
        assert!(told.contains(says), "{told}");
    }
    let codes = changed("mlx-4bit", None, |name, dtype, shape, bytes| {
        if name.ends_with(".scales") {
            *dtype = Dtype::U8;
            bytes.truncate(shape.iter().product());
        }
        true
    });
    assert!(refused(&codes).contains("another mode than affine"));
    let other = changed("mlx-4bit", None, |name, dtype, _, _| {
        if name.ends_with(".biases") {
            *dtype = Dtype::F16;
        }
        true
    });
    assert!(refused(&other).contains("biases is F16"));
}
