//! Every setting of a run, once. What takes settings from somewhere, or writes them down, is made of
//! this list: [`Settings`](super::Settings) and its TOML, [`RunConfig`](super::RunConfig), the record
//! of a run, and the flags of a command.

/// Calls a macro with the settings of a run, in groups.
///
/// One is
///
/// ```text
/// /// Help of one line
/// ///
/// /// More for who reads the documentation.
/// name: Type = default => TypeInARun, shape, presence, record, read(serde), write(serde);
/// ```
///
/// - `= default` where there is one that depends on no other setting;
/// - `=> TypeInARun` where a run has it as another type, parsed;
/// - the shape of its flag: `folder`, `file`, `output`, `word`, `count`, `list`, `factors`, `toggle` (a
///   flag that may have a value), `switch` (one that has none), `float` (a type of numbers);
/// - whether a run always has a value of it, `Always` or `Perhaps`;
/// - where it is recorded: `Everywhere`, in what a resumed run must have in common with the one that
///   was stopped and in the adapter; in its `Adapter` alone; or `Nowhere`;
/// - serde's attributes for TOML and for the record, where its text is not serde's own.
#[doc(hidden)]
#[macro_export]
macro_rules! run_settings {
    ($with:ident) => {
        $with! {
            Files {
                /// Folder of the base model: config.json, tokenizer.json, safetensors
                ///
                /// Required.
                model: ::std::path::PathBuf, folder, Always, Nowhere;
                /// Training examples: JSONL of {"prompt","completion"}, {"text"} or {"messages"}
                ///
                /// Required.
                data: ::std::path::PathBuf, file, Always, Nowhere;
                /// Validation examples; the step with the lowest loss on them is kept
                ///
                /// Without them nothing is validated, and the last step counts.
                valid: ::std::path::PathBuf, file, Perhaps, Nowhere;
                /// The .tl file to write
                ///
                /// Required.
                output: ::std::path::PathBuf, output, Always, Nowhere;
            }
            Adapter {
                /// lora, vera, tl1 … tl6: preset of --train and --tie [default: tl6]
                method: $crate::adapter::Method, word, Always, Everywhere,
                    read(deserialize_with = "values::text"),
                    write(serialize_with = "values::as_text");
                /// Which factors train [default: the method's]
                ///
                /// In a run in the order A, B, C, u, v, C or u and not both, each at most once, at
                /// least one.
                train: Vec<$crate::adapter::FactorName>, factors, Always, Everywhere,
                    read(deserialize_with = "values::texts"),
                    write(serialize_with = "values::factors_as_text");
                /// Whether all layers share one A and one B [default: the method's]
                tie: bool, toggle, Always, Everywhere;
                /// Layers to adapt, such as 8 or 0-7,12 [default: all]
                layers: $crate::train::settings::Layers, word, Perhaps, Everywhere;
                /// Modules to adapt: q, k, v, o, gate, up, down, full names, or all [default: q,k,v]
                targets: Vec<String> = ["q", "k", "v"].map(Into::into).into(), list, Always, Everywhere;
                /// Whether targets that read the same input share one A [default: true]
                joint: bool = true, toggle, Always, Everywhere;
                /// Rank r [default: 8]
                rank: usize = 8, word, Always, Everywhere;
                /// The update is scaled by alpha / r [default: r]
                alpha: f64, word, Always, Everywhere;
                /// Scale the update by alpha / √r: rsLoRA
                use_rslora: bool = false, switch, Always, Everywhere,
                    write(skip_serializing_if = "values::is_false");
                /// How A and B start: default, or kaiming, gaussian, orthogonal as PEFT has them
                ///
                /// `default` is uniform with variance 1/in, three times that of PEFT's default, which is
                /// `kaiming`.
                init: $crate::train::Init = $crate::train::Init::Default, word, Always, Everywhere,
                    read(deserialize_with = "values::text"),
                    write(
                        serialize_with = "values::as_text",
                        skip_serializing_if = "values::is_default"
                    );
                /// Probability with which an element of what A reads is zero in training [default: 0]
                ///
                /// PEFT's lora_dropout; targets that share one A share what it reads.
                lora_dropout: f64 = 0.0, word, Always, Everywhere,
                    write(skip_serializing_if = "values::is_zero");
                /// Type of the stored values [default: f32]
                ///
                /// f32, bf16 or f16.
                dtype: $crate::tensor::Dtype = $crate::tensor::Dtype::F32, float, Always, Adapter,
                    read(deserialize_with = "values::dtype"),
                    write(serialize_with = "values::dtype_as_text");
            }
            Optimisation {
                /// Most optimiser steps [default: 20000]
                max_steps: u64 = 20_000, count, Always, Everywhere;
                /// Most passes over the data [default: no limit]
                ///
                /// The smaller of the two limits counts.
                epochs: u64, count, Perhaps, Adapter;
                /// Highest learning rate [default: 1e-4]
                lr: f64 = 1e-4, word, Always, Everywhere;
                /// Learning rate of B, u and v over that of A and C: LoRA+ [default: 1]
                ///
                /// The groups of PEFT's create_loraplus_optimizer; weight decay is that of all.
                loraplus_lr_ratio: f64 = 1.0, word, Always, Everywhere,
                    write(skip_serializing_if = "values::is_one");
                /// Learning rate of the last step [default: 1e-6]
                ///
                /// Or `lr` where that is smaller.
                min_lr: f64, word, Always, Everywhere;
                /// Steps of linear warm-up [default: 50, at most a tenth of the run]
                warmup: u64, count, Always, Everywhere;
                /// Decoupled weight decay [default: 0.01]
                weight_decay: f64 = 0.01, word, Always, Everywhere;
                /// AdamW's decay of the first moment [default: 0.9]
                beta1: f64 = 0.9, word, Always, Everywhere;
                /// AdamW's decay of the second moment [default: 0.98]
                beta2: f64 = 0.98, word, Always, Everywhere;
                /// Largest norm of the gradient, 0 for no clipping [default: 1]
                clip: f64 = 1.0, word, Always, Everywhere;
                /// Examples that go through the model at once [default: 8]
                ///
                /// Or `global-batch` where that is smaller.
                batch_size: usize, count, Always, Everywhere;
                /// Examples of one optimiser step [default: 128]
                global_batch: usize = 128, count, Always, Everywhere;
                /// Longest example in tokens; longer ones are cut, and counted [default: 2048]
                seq_len: usize = 2048, count, Always, Everywhere;
                /// Learn prompts as well as completions
                loss_on_prompt: bool = false, switch, Always, Everywhere;
                /// Learn only what the chat template marks as the assistant's: messages only
                ///
                /// By its generation blocks, as TRL does; else by what each answer adds to the text.
                assistant_only_loss: bool = false, switch, Always, Everywhere,
                    write(skip_serializing_if = "values::is_false");
                /// Steps between validations [default: 200]
                eval_every: u64 = 200, count, Always, Everywhere;
                /// Validations without improvement after which the run stops, 0 for never [default: 10]
                patience: u64 = 10, count, Always, Everywhere;
                /// Nats per token that count as improvement [default: 0.001]
                min_delta: f64 = 0.001, word, Always, Everywhere;
                /// Seed of the start values and of the order of examples [default: 0]
                seed: u64 = 0, word, Always, Everywhere;
                /// Steps between checkpoints [default: 100]
                checkpoint_every: u64 = 100, count, Always, Nowhere;
                /// Compute activations again in the backward pass, to save memory
                recompute: bool = false, switch, Always, Everywhere;
                /// cpu, auto, or cuda[:N] [default: cpu]
                device: String = "cpu".into() => $crate::train::settings::DeviceName,
                    word, Always, Everywhere;
                /// Type of products with the weights: f32 or bf16 [default: bf16 where base and device have it, else f32]
                ///
                /// On a GPU also of activations and weights. The adapter, its gradients and its optimiser are
                /// f32 with either.
                compute_dtype: $crate::tensor::Dtype, float, Perhaps, Everywhere,
                    read(deserialize_with = "values::dtype"),
                    write(
                        serialize_with = "values::optional_dtype_as_text",
                        skip_serializing_if = "Option::is_none"
                    );
            }
        }
    };
}

pub(super) use run_settings;
