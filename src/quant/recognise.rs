//! From names, dtypes and a config to quantised weights: which tensors belong together, and what they are.

use super::affine::Affine;
use super::awq::Awq;
use super::bnb::{Bnb4, Bnb4Parts, Int8};
use super::config::Config;
use super::decode::Decoder;
use super::gptq::Gptq;
use super::mxfp4::Mxfp4;
use super::packed::PackedRows;
use super::part::Part;
use super::scaled::{Global, Product, Scaled};
use super::weight::QuantisedWeight;
use crate::error::Result;
use crate::safetensors::{Checkpoint, Location};
use crate::tensor::Dtype;

/// Names, after a module's path, of numbers for activations, which an unquantised model has not.
const ACTIVATIONS: [&str; 12] = [
    ".input_scale",
    ".input_global_scale",
    ".input_zero_point",
    ".input_scale_ub",
    ".output_scale",
    ".output_zero_point",
    ".activation_scale",
    ".qscale_act",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
];

/// Looks at one tensor after another.
pub(super) struct Recogniser<'a, 'c> {
    pub(super) base: &'a Checkpoint,
    pub(super) config: &'c Config,
    pub(super) method: Option<String>,
}

/// A weight before it has a name.
struct Found<'a> {
    decoder: Box<dyn Decoder + 'a>,
    shape: Vec<usize>,
    kind: String,
}

impl<'a> Found<'a> {
    fn new(decoder: impl Decoder + 'a, shape: Vec<usize>, kind: String) -> Self {
        Self {
            decoder: Box::new(decoder),
            shape,
            kind,
        }
    }
}

impl<'a> Recogniser<'a, '_> {
    fn is(&self, method: &str) -> bool {
        self.method.as_deref() == Some(method)
    }

    fn part(&self, name: &str) -> Option<Part<'a>> {
        self.base.locate(name).map(|l| Part::at(self.base, l))
    }

    /// The quantised weight whose codes are at `location`; `None` where it is no quantised weight's.
    pub(super) fn weight(
        &self,
        name: &str,
        location: Location,
    ) -> Result<Option<QuantisedWeight<'a>>> {
        let codes = Part::at(self.base, location);
        let mut companions = Vec::new();
        let mut take = |name: &str| {
            let part = self.part(name)?;
            companions.push(part.location);
            Some(part)
        };
        let (output, found) = if let Some(module) = name.strip_suffix(".qweight") {
            let found = self.integers(codes, module, &mut take)?;
            (format!("{module}.weight"), found)
        } else if let Some(output) = name.strip_suffix("_packed") {
            match self.packed(codes, output, &mut take)? {
                Some(found) => (output.to_owned(), found),
                None => return Ok(None),
            }
        } else if let Some(output) = name.strip_suffix("_blocks") {
            let Some(scales) = take(&format!("{output}_scales")) else {
                return Ok(None);
            };
            let weight = Mxfp4::new(codes, scales)?;
            let shape = weight.shape();
            (
                output.to_owned(),
                Found::new(weight, shape, "MXFP4".to_owned()),
            )
        } else {
            match self.in_place(codes, name, &mut take)? {
                Some(found) => (name.to_owned(), found),
                None => return Ok(None),
            }
        };
        let module = output.strip_suffix(".weight").unwrap_or(&output);
        // Those of a cache are an attention's, not a layer's.
        let parent = module.rsplit_once('.').map_or("", |(parent, _)| parent);
        for end in ACTIVATIONS {
            take(&format!("{module}{end}"));
            take(&format!("{parent}{end}"));
        }
        // Stored (in, out), and quantised the other way round.
        if self.config.architecture.is_conv1d(module) == Some(true) {
            return Err(codes.bad(format!(
                "quantised ({}), of a model whose layers are stored transposed, which is not read",
                found.kind
            )));
        }
        Ok(Some(QuantisedWeight {
            name: output,
            location,
            shape: found.shape,
            kind: found.kind,
            companions,
            decoder: found.decoder,
        }))
    }

    /// GPTQ and AWQ.
    fn integers(
        &self,
        codes: Part<'a>,
        module: &str,
        take: &mut dyn FnMut(&str) -> Option<Part<'a>>,
    ) -> Result<Found<'a>> {
        let tool = if self.is("awq") { "AWQ" } else { "GPTQ" };
        let mut need = |what: &str| {
            let part = take(&format!("{module}.{what}"));
            part.ok_or_else(|| codes.bad(format!("quantised by {tool}, and its {what} is missing")))
        };
        let (zeros, scales) = (need("qzeros")?, need("scales")?);
        let groups = take(&format!("{module}.g_idx"));
        // AWQ's words run along the outputs: eight times fewer than there are scales.
        let wide = codes.shape().last() != scales.shape().last();
        if self.is("awq") || (self.method.is_none() && groups.is_none() && wide) {
            let weight = Awq::new(codes, zeros, scales)?;
            let shape = weight.shape();
            return Ok(Found::new(weight, shape, "AWQ 4 bit".to_owned()));
        }
        let format = self.config.text("checkpoint_format");
        let format = format.or_else(|| self.config.text("format"));
        let off_by_one = !format.is_some_and(|f| f.eq_ignore_ascii_case("gptq_v2"));
        let bits = self.config.number("bits");
        let weight = Gptq::new(codes, (zeros, scales, groups), bits, off_by_one)?;
        let (shape, bits) = (weight.shape(), weight.bits);
        Ok(Found::new(weight, shape, format!("GPTQ {bits} bit")))
    }

    /// What compressed-tensors packs.
    fn packed(
        &self,
        codes: Part<'a>,
        output: &str,
        take: &mut dyn FnMut(&str) -> Option<Part<'a>>,
    ) -> Result<Option<Found<'a>>> {
        let Some(scales) = take(&format!("{output}_scale")) else {
            return Ok(None);
        };
        let tool = "compressed-tensors";
        if codes.dtype() == Dtype::U8 {
            let found = match take(&format!("{output}_global_scale")) {
                Some(global) => {
                    global.is_one_of(&[Dtype::F32], "weight_global_scale")?;
                    if global.elements() != 1 {
                        global.has_shape(&[1], "weight_global_scale")?;
                    }
                    // torch divides in f32, but where the divisor has no axis: then in the scales' bf16.
                    let dtype = if global.shape().is_empty() {
                        Dtype::BF16
                    } else {
                        Dtype::F32
                    };
                    let by = global.floats(0..1)?.first().copied().unwrap_or(f32::NAN);
                    let weight =
                        Scaled::pairs(codes, scales, 16)?.global(Global::Divide(by, dtype));
                    (weight, "nvfp4")
                }
                None => (Scaled::pairs(codes, scales, 32)?, "mxfp4"),
            };
            let shape = doubled(codes.shape());
            let weight = found.0.product(Product::OfScale(Dtype::BF16));
            return Ok(Some(Found::new(
                weight,
                shape,
                format!("{tool} {}", found.1),
            )));
        }
        let shape = take(&format!("{output}_shape")).ok_or_else(|| {
            codes.bad(format!(
                "quantised by {tool}, and its weight_shape is missing"
            ))
        })?;
        let zeros = take(&format!("{output}_zero_point"));
        let groups_of = take(&format!("{output}_g_idx"));
        let bits: Vec<usize> = self.config.weight_groups().iter().map(|g| g.bits).collect();
        let weight = PackedRows::new(codes, (scales, shape), (zeros, groups_of), &bits)?;
        let kind = format!("{tool} int{}, {}", weight.bits, weight.grain());
        let shape = weight.shape.to_vec();
        Ok(Some(Found::new(weight, shape, kind)))
    }

    /// What keeps the weight's name.
    fn in_place(
        &self,
        codes: Part<'a>,
        name: &str,
        take: &mut dyn FnMut(&str) -> Option<Part<'a>>,
    ) -> Result<Option<Found<'a>>> {
        let nf4 = take(&format!("{name}.quant_state.bitsandbytes__nf4"));
        let state = nf4.or_else(|| take(&format!("{name}.quant_state.bitsandbytes__fp4")));
        let absmax = take(&format!("{name}.absmax"));
        if state.is_some() || absmax.is_some() {
            take(&format!("{name}.quant_map"));
            let parts = Bnb4Parts {
                absmax,
                nested_absmax: take(&format!("{name}.nested_absmax")),
                nested_map: take(&format!("{name}.nested_quant_map")),
                state: state.map(|s| (s, nf4.is_some())),
            };
            let weight = Bnb4::new(codes, &parts)?;
            let table = if weight.is_nf4 { "nf4" } else { "fp4" };
            let nested = if weight.is_nested() { ", nested" } else { "" };
            let stored = match codes.dtype() {
                Dtype::U8 => String::new(),
                dtype => format!(", stored as {dtype}"),
            };
            let kind = format!("bitsandbytes {table}{nested}{stored}");
            let shape = weight.shape.clone();
            return Ok(Some(Found::new(weight, shape, kind)));
        }
        if !is_code(codes.dtype()) {
            return Ok(None);
        }
        let module = name.strip_suffix(".weight");
        if let Some(module) = module
            && let Some(scales) = take(&format!("{module}.SCB"))
        {
            let format = take(&format!("{module}.weight_format"));
            let weight = Int8::new(codes, scales, format)?;
            let shape = codes.shape().to_vec();
            return Ok(Some(Found::new(
                weight,
                shape,
                "bitsandbytes int8".to_owned(),
            )));
        }
        if let Some(module) = module
            && codes.dtype() == Dtype::U32
            && let Some(scales) = take(&format!("{module}.scales"))
        {
            let biases = take(&format!("{module}.biases"));
            return self.mlx(codes, module, scales, biases).map(Some);
        }
        let inverse = take(&format!("{name}_scale_inv"))
            .or_else(|| take(&format!("{}.qscale_weight", module?)))
            .or_else(|| take(&format!("{}.scale", module?)));
        take(&format!("{name}_activation_scale"));
        take(&format!("{name}_input_scale"));
        if let Some(scales) = inverse {
            let weight = Scaled::new(codes, scales, self.config.block())?;
            let kind = format!("{}, {}", eight_bits(codes.dtype()), weight.grain());
            return Ok(Some(Found::new(weight, codes.shape().to_vec(), kind)));
        }
        match take(&format!("{name}_scale")) {
            Some(scales) => self.with_scale(codes, name, scales, take).map(Some),
            None => Ok(None),
        }
    }

    /// What MLX quantises.
    fn mlx(
        &self,
        codes: Part<'a>,
        module: &str,
        scales: Part<'a>,
        biases: Option<Part<'a>>,
    ) -> Result<Found<'a>> {
        if !scales.dtype().is_float() || scales.dtype().bits() < 16 {
            return Err(codes.bad(format!(
                "quantised by MLX in another mode than affine, with scales of {}, which is not read",
                scales.dtype()
            )));
        }
        let biases =
            biases.ok_or_else(|| codes.bad("quantised by MLX, and its biases are missing"))?;
        let said = self.config.mlx(module).ok_or_else(|| {
            codes.bad("quantised by MLX, and no config says of how many bits in which groups")
        })?;
        let weight = Affine::new(codes, (scales, biases), said)?;
        let shape = weight.shape();
        let kind = format!("MLX {} bit, groups of {}", weight.bits, weight.group);
        Ok(Found::new(weight, shape, kind))
    }

    /// A weight with `weight_scale`: compressed-tensors, FBGEMM or ModelOpt.
    fn with_scale(
        &self,
        codes: Part<'a>,
        name: &str,
        scales: Part<'a>,
        take: &mut dyn FnMut(&str) -> Option<Part<'a>>,
    ) -> Result<Found<'a>> {
        if take(&format!("{name}_g_idx")).is_some() {
            return Err(
                codes.bad("quantised by compressed-tensors in another order, which is not read")
            );
        }
        let second = take(&format!("{name}_scale_2"));
        if codes.dtype() == Dtype::U8 {
            let second = second.ok_or_else(|| {
                codes.bad("quantised to pairs of 4 bit in a way that is not known: it has no weight_scale_2")
            })?;
            second.is_one_of(&[Dtype::F32], "weight_scale_2")?;
            if second.elements() != 1 {
                second.has_shape(&[1], "weight_scale_2")?;
            }
            scales.is_one_of(&[Dtype::F8_E4M3], "weight_scale")?;
            let by = second.floats(0..1)?.first().copied().unwrap_or(f32::NAN);
            let weight = Scaled::pairs(codes, scales, 16)?.global(Global::Multiply(by));
            let shape = doubled(codes.shape());
            return Ok(Found::new(weight, shape, "ModelOpt nvfp4".to_owned()));
        }
        let groups = self.config.weight_groups();
        let block = groups
            .iter()
            .find_map(|g| g.block)
            .or_else(|| self.config.block());
        let fits = |block| Scaled::new(codes, scales, block);
        // A group of a mixed config may say a block that is another group's.
        let weight = match block {
            Some(_) => fits(block).or_else(|_| fits(None))?,
            None => fits(None)?,
        };
        let tool = match self.method.as_deref() {
            Some("modelopt") => "ModelOpt ",
            Some("fbgemm_fp8") => "FBGEMM ",
            Some("compressed-tensors") => "compressed-tensors ",
            _ => "",
        };
        let weight = match self.method.as_deref() {
            Some("modelopt") => weight.product(Product::Asked),
            Some("fbgemm_fp8" | "fp8" | "mxfp8") => weight,
            _ => match scales.dtype() {
                dtype if dtype.is_float() => weight.product(Product::OfScale(dtype)),
                _ => weight.product(Product::OfScale(Dtype::BF16)),
            },
        };
        let weight = match take(&format!("{name}_zero_point")) {
            Some(zeros) => weight.zeros(zeros)?,
            None => weight,
        };
        let kind = format!("{tool}{}, {}", eight_bits(codes.dtype()), weight.grain());
        Ok(Found::new(weight, codes.shape().to_vec(), kind))
    }
}

/// Whether elements of a dtype are codes, in a weight.
pub(super) fn is_code(dtype: Dtype) -> bool {
    use Dtype::{F8_E4M3, F8_E4M3FNUZ, F8_E5M2, F8_E5M2FNUZ, I8, I32, U8, U32};
    matches!(
        dtype,
        F8_E4M3 | F8_E5M2 | F8_E4M3FNUZ | F8_E5M2FNUZ | I8 | U8 | I32 | U32 | Dtype::F4
    )
}

fn eight_bits(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F8_E4M3 => "FP8 (E4M3)",
        Dtype::F8_E5M2 => "FP8 (E5M2)",
        Dtype::I8 => "int8",
        other => other.as_str(),
    }
}

/// The extents of a weight whose bytes hold two elements.
fn doubled(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(last) = shape.last_mut() {
        *last *= 2;
    }
    shape
}
