//! The stable codes of failures, and whose fault a failure of each is.

/// Whose fault a failure is, and so who can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused: missing file, permission, full disk. May be retried.
    Io,
    /// The caller asked for something that makes no sense.
    Usage,
    /// The file breaks the rules of its own format.
    Malformed,
    /// The file is well formed, but its bytes are not those it promises (a digest differs).
    Integrity,
    /// The file is larger than this reader is willing to handle.
    Limit,
    /// The file is valid, and says something tlkit cannot do.
    Unsupported,
    /// Two inputs, each valid, do not fit one another.
    Incompatible,
    /// The work was stopped on request.
    Interrupted,
    /// tlkit itself failed: a bug.
    Internal,
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $kind:ident;)+) => {
        /// Stable identity of a failure. The registry with one line for each is `spec/errors.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code, in ascending order.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The code as users see it, such as `TL0102`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code,)+ }
            }

            /// Whose fault a failure of this code is.
            pub fn kind(self) -> ErrorKind {
                match self { $(Code::$name => ErrorKind::$kind,)+ }
            }

            /// One line that says what the code means, as in the registry.
            pub fn summary(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

codes! {
    /// An operation of the file system failed.
    Io = "TL0001", Io;
    /// A file or folder that was named does not exist.
    NotFound = "TL0002", Io;
    /// The output exists already, and overwriting was not asked for, or would destroy something else.
    OutputExists = "TL0003", Io;
    /// The disk has no room for the output.
    NoSpace = "TL0004", Io;
    /// The work was interrupted; nothing was left under the output's name.
    Interrupted = "TL0005", Interrupted;
    /// An argument does not make sense.
    Usage = "TL0006", Usage;
    /// Another process is working on the same output.
    Busy = "TL0007", Io;
    /// tlkit itself failed, which is a bug of it.
    Internal = "TL0010", Internal;
    /// The machine has no memory left for the work.
    OutOfMemory = "TL0011", Io;

    /// The file ends before its header or its data do.
    Truncated = "TL0101", Malformed;
    /// The header is longer than readers accept.
    HeaderTooLarge = "TL0102", Limit;
    /// The header is not the JSON object that safetensors requires.
    HeaderInvalid = "TL0103", Malformed;
    /// A key stands twice in one JSON object.
    DuplicateKey = "TL0104", Malformed;
    /// A tensor's name is empty, too long, or has control characters.
    BadTensorName = "TL0105", Malformed;
    /// A tensor's dtype is not one that safetensors defines.
    UnknownDtype = "TL0106", Unsupported;
    /// A tensor's data offsets are reversed.
    BadOffsets = "TL0107", Malformed;
    /// A tensor's byte length differs from its shape times its dtype's size.
    SizeMismatch = "TL0108", Malformed;
    /// Two tensors claim the same bytes.
    Overlap = "TL0109", Malformed;
    /// The data section has bytes that belong to no tensor.
    Hole = "TL0110", Malformed;
    /// A shape's element count does not fit in 64 bits.
    ShapeOverflow = "TL0111", Malformed;
    /// The file has more tensors than readers accept.
    TooManyTensors = "TL0112", Limit;
    /// `model.safetensors.index.json` is not valid, or disagrees with its shards.
    BadIndex = "TL0113", Malformed;
    /// A tensor that was asked for is not in the file.
    TensorNotFound = "TL0114", Malformed;
    /// A file of a folder is a link to a file outside of that folder.
    LinkOutside = "TL0115", Malformed;
    /// Another kind of file is under this name: a Git LFS pointer, a web page, an archive.
    OtherFile = "TL0116", Malformed;

    /// The safetensors file is not a `.tl`: it has no `tl` metadata.
    NotTl = "TL0201", Malformed;
    /// The `.tl` is of a version that this build does not know.
    TlVersion = "TL0202", Unsupported;
    /// The `.tl` requires a feature that this build does not know.
    UnknownFeature = "TL0203", Unsupported;
    /// The `.tl` header is not in canonical form.
    HeaderNotCanonical = "TL0204", Malformed;
    /// The manifest is not valid JSON of the v1 schema.
    ManifestInvalid = "TL0205", Malformed;
    /// The manifest is valid, and not in canonical form.
    ManifestNotCanonical = "TL0206", Malformed;
    /// The root in the header is not the SHA-256 of the manifest.
    RootMismatch = "TL0207", Integrity;
    /// The manifest names a tensor that it does not describe.
    TensorUndeclared = "TL0208", Malformed;
    /// The manifest describes a tensor that nothing uses.
    TensorUnused = "TL0209", Malformed;
    /// A tensor's shape disagrees with the tie group that uses it.
    ShapeDisagrees = "TL0210", Malformed;
    /// Two tie groups adapt the same module.
    DuplicateTarget = "TL0211", Malformed;
    /// A stored tensor is not the one that the manifest describes (name, dtype or shape).
    TensorDisagrees = "TL0212", Malformed;
    /// A tensor's bytes do not have the SHA-256 that the manifest gives, or an undo file that of what it says.
    DigestMismatch = "TL0213", Integrity;
    /// A tensor is not in the file, and not among the blobs at hand.
    ExternalMissing = "TL0214", Io;
    /// A seeded tensor's recipe is not valid, or makes other values than the tensor has.
    SeedInvalid = "TL0215", Malformed;
    /// A packed tensor is not one zstd frame of the permitted kind.
    PackInvalid = "TL0216", Malformed;
    /// A packed tensor unpacks to more or fewer bytes than the manifest says.
    PackSize = "TL0217", Malformed;
    /// A count in the manifest is beyond the limits of v1.
    ManifestLimit = "TL0218", Limit;
    /// A tensor has NaN or infinite values, which a `.tl` may not hold.
    NonFinite = "TL0219", Malformed;
    /// A module, layer list or other name in the manifest is not valid.
    BadName = "TL0220", Malformed;
    /// The tensor's dtype is not one that a `.tl` may hold.
    DtypeNotAllowed = "TL0221", Unsupported;
    /// The bytes of a coded tensor are not what its shape and the coding ask for.
    CodingInvalid = "TL0222", Malformed;

    /// `adapter_config.json` is not valid JSON, or a key has the wrong type.
    ConfigInvalid = "TL0301", Malformed;
    /// `adapter_config.json` lacks a key without which the adapter means nothing.
    ConfigMissingKey = "TL0302", Malformed;
    /// The folder has no adapter weights, or no `adapter_config.json`.
    NoAdapter = "TL0303", Malformed;
    /// The pickle asks for something other than plain tensors; it was not executed.
    PickleRefused = "TL0304", Malformed;
    /// A tensor in the adapter has a name that no PEFT rule explains.
    UnknownAdapterTensor = "TL0305", Malformed;
    /// One of a pair of factors is missing (`lora_A` without `lora_B`, `u` without `v`).
    MissingFactor = "TL0306", Malformed;
    /// A tensor has no elements, as un-gathered ZeRO-3 and FSDP shards do.
    EmptyTensor = "TL0307", Malformed;
    /// The rank in the config differs from that of the tensors.
    RankMismatch = "TL0308", Incompatible;
    /// The config's target modules disagree with the modules that have tensors.
    TargetMismatch = "TL0309", Incompatible;
    /// A VeRA adapter says that it holds its projections, and does not.
    NoProjection = "TL0310", Malformed;
    /// The factors of one module do not fit one another.
    FactorShape = "TL0311", Malformed;
    /// A pattern in the config is not a valid regular expression, or too costly to match.
    BadPattern = "TL0312", Malformed;
    /// Alpha is zero, negative, not finite, or missing.
    BadAlpha = "TL0313", Malformed;
    /// The adapter is of another tool's format, not PEFT's.
    NotPeft = "TL0314", Unsupported;
    /// An archive of the old `adapter_model.bin` form, or a `.nemo`, is not valid.
    BadArchive = "TL0315", Malformed;
    /// The adapter alone does not say enough; the base model is needed beside it.
    NeedsBase = "TL0316", Usage;
    /// Trained weights beside the adapter belong to it, and cannot be merged with it.
    TrainedBeside = "TL0317", Unsupported;
    /// The file lacks tensors of modules that config and base say are adapted.
    HalfAdapter = "TL0318", Incompatible;
    /// A Tied-LoRA folder's weights are not those of the `.tl` beside them.
    TlBesideDiffers = "TL0319", Malformed;
    /// The `model_config.yaml` of a `.nemo` is not valid, or lacks a key without which the adapter means nothing.
    NemoConfig = "TL0320", Malformed;

    /// DoRA: the update depends on the base weights; `.tl` v1 cannot say it.
    UnsupportedDora = "TL0401", Unsupported;
    /// aLoRA: the update depends on the prompt, and can be neither stored nor merged.
    UnsupportedAlora = "TL0402", Unsupported;
    /// Arrow: a router chooses among adapters at run time.
    UnsupportedArrow = "TL0403", Unsupported;
    /// QALoRA: the input is pooled before A.
    UnsupportedQalora = "TL0404", Unsupported;
    /// PiSSA: the factors are relative to a modified base.
    UnsupportedPissa = "TL0405", Unsupported;
    /// OLoRA: the factors are relative to a modified base.
    UnsupportedOlora = "TL0406", Unsupported;
    /// CorDA: the factors are relative to a modified base.
    UnsupportedCorda = "TL0407", Unsupported;
    /// LoftQ: the factors are relative to a quantised base.
    UnsupportedLoftq = "TL0408", Unsupported;
    /// LoRA-GA: the factors are relative to a modified base.
    UnsupportedLoraGa = "TL0409", Unsupported;
    /// KaSA: the base is truncated on load and the update has a diagonal of its own.
    UnsupportedKasa = "TL0410", Unsupported;
    /// `layer_replication`: the adapter's layers do not exist in the base checkpoint.
    UnsupportedLayerReplication = "TL0411", Unsupported;
    /// `target_parameters`: which factors are of which parameter is not known, or a task has no form for
    /// parameters. Or pairs of all experts in one tensor, under a name that does not say how gate and up lie.
    UnsupportedTargetParameters = "TL0412", Unsupported;
    /// BD-LoRA: the factors are block-diagonal shards.
    UnsupportedBdlora = "TL0413", Unsupported;
    /// The adapter is on a convolution.
    UnsupportedConv = "TL0414", Unsupported;
    /// The adapter is on `nn.MultiheadAttention`, which PEFT itself merges wrongly.
    UnsupportedMha = "TL0415", Unsupported;
    /// `trainable_token_indices`: single rows of an embedding are replaced.
    UnsupportedTrainableTokens = "TL0416", Unsupported;
    /// The adapter's PEFT type is one that has no low-rank form tlkit knows.
    UnsupportedPeftType = "TL0417", Unsupported;
    /// `init_lora_weights` names a method that tlkit does not know.
    UnsupportedInit = "TL0418", Unsupported;
    /// `megatron_config`, or a `.nemo` of pipeline stages: the adapter is in shards that are not joined.
    UnsupportedMegatron = "TL0419", Unsupported;
    /// The adapter has no exact form of the kind asked for.
    ExportImpossible = "TL0420", Unsupported;
    /// MonteCLoRA and VeLoRA carry extra trained state that a merge would have to interpret.
    UnsupportedVariant = "TL0421", Unsupported;
    /// `ensure_weight_tying`: one adapter's factors are tied across two modules.
    UnsupportedWeightTying = "TL0422", Unsupported;
    /// NeMo's tied LoRA tells its layers apart by a position embedding, which adds a bias to each.
    UnsupportedPositionEmbedding = "TL0423", Unsupported;

    /// An adapted module has no weight in the base.
    UnmatchedModule = "TL0501", Incompatible;
    /// A base weight has another shape than the adapter needs.
    BaseShape = "TL0502", Incompatible;
    /// A base weight is quantised or of a dtype that cannot be merged into.
    BaseDtype = "TL0503", Incompatible;
    /// The merge would write NaN or infinite values; nothing was written.
    NonFiniteResult = "TL0504", Incompatible;
    /// The base is not the one that the adapter was made for.
    FingerprintMismatch = "TL0505", Incompatible;
    /// The adapter carries no fingerprint to check the base against.
    FingerprintAbsent = "TL0506", Incompatible;
    /// The adapter would change a tensor that the model shares between two places.
    TiedEmbedding = "TL0507", Incompatible;
    /// The merge would change nothing: the output would be the base.
    NothingChanged = "TL0508", Incompatible;
    /// The undo file does not belong to this base, has no digest, or the base was changed since.
    UndoMismatch = "TL0509", Incompatible;
    /// A name matches several base weights.
    AmbiguousModule = "TL0510", Incompatible;
    /// These adapters cannot be merged together.
    AdaptersConflict = "TL0511", Incompatible;
    /// The base stores a weight in parts or in an order that the work cannot follow.
    BaseLayout = "TL0515", Incompatible;

    /// A line of training or evaluation data is not what the task needs.
    BadExample = "TL0601", Malformed;
    /// The data has no example that could be used.
    NoExamples = "TL0602", Malformed;
    /// The tokenizer is missing or not valid.
    BadTokenizer = "TL0603", Malformed;
    /// The model's chat template is missing, not valid, or refuses the messages.
    ChatTemplate = "TL0604", Malformed;
    /// The run's config file is not valid TOML of the documented keys.
    BadRunConfig = "TL0605", Malformed;
    /// The model's `config.json` lacks a value, or its values contradict one another or the weights.
    ModelConfig = "TL0606", Malformed;
    /// The model is of an architecture, or asks for a feature, that tlkit cannot run.
    UnsupportedModel = "TL0607", Unsupported;
    /// A loss or gradient is not finite, or the loss ran away; the last good state was kept.
    Diverged = "TL0608", Incompatible;
    /// The checkpoint of a run is damaged.
    BadCheckpoint = "TL0609", Malformed;
    /// The checkpoint is of another run: config, data or model differ.
    CheckpointMismatch = "TL0610", Incompatible;
    /// The device is not there, or this build cannot use it.
    NoDevice = "TL0611", Unsupported;
    /// The tensor library or a device refused an operation, for want of device memory most of the time.
    Backend = "TL0612", Io;
    /// The adapter holds something that the trainer's model does not run; merging may.
    UnsupportedAdapter = "TL0613", Unsupported;
    /// The folder has the results of another sweep.
    SweepMismatch = "TL0614", Incompatible;
    /// A text is longer than is tokenised.
    TextTooLong = "TL0615", Limit;

    /// The address is not one of a store: a folder, `s3://`, `gs://`, `az://` or `memory:`.
    StoreUrl = "TL0701", Usage;
    /// There is no store at this address.
    NoStore = "TL0702", Io;
    /// The name of a tenant, task or tag is not valid.
    StoreName = "TL0703", Usage;
    /// The store has no such adapter, version, tag or published tensor.
    NotInStore = "TL0704", Io;
    /// The store's layout is of a version or has a feature that this build does not know.
    StoreVersion = "TL0705", Unsupported;
    /// An object of the store has not the bytes that its digest promises.
    StoreDamaged = "TL0706", Integrity;
    /// A blob that a version names is not in the store.
    BlobMissing = "TL0707", Integrity;
    /// An object of the store is not of the layout's form.
    StoreRecord = "TL0708", Malformed;
    /// Other writers kept changing the same name, or garbage collection overtook the work.
    StoreConflict = "TL0709", Io;
    /// The tenant's quota has no room for the adapter.
    QuotaExceeded = "TL0710", Incompatible;
    /// The adapter has no signature by any of the keys that are trusted.
    SignatureInvalid = "TL0711", Integrity;
    /// The file is not an Ed25519 key in PEM form.
    BadKey = "TL0712", Malformed;
    /// The object store refused or failed an operation.
    StoreBackend = "TL0713", Io;
    /// What has an object's place in a store's folder is a link, a device or a folder.
    StoreIrregular = "TL0714", Malformed;
    /// A variable of the environment that sets up the object store has a value that is not valid.
    StoreSetting = "TL0715", Usage;
    /// The store's settings are damaged, so that the tenant's quota is not known.
    QuotaUnknown = "TL0716", Integrity;
    /// Records of a sequence do not follow one another as they were written.
    StoreSequence = "TL0717", Integrity;
    /// The address is not one of an artefact in a registry: `oci://HOST/REPOSITORY:TAG`.
    RegistryAddress = "TL0718", Usage;
    /// The registry refused or failed a request, or its credentials cannot be used.
    RegistryFailed = "TL0719", Io;
    /// The artefact in the registry is not an adapter's, or of another form than is read.
    ArtifactInvalid = "TL0720", Malformed;
    /// The registry gave other bytes than the digest that it was asked for.
    ArtifactDamaged = "TL0721", Integrity;
    /// The file is not a signature of the form that OpenSSF Model Signing has, or has more than is read.
    BundleInvalid = "TL0722", Malformed;
    /// Files are others than were signed.
    SignedFilesDiffer = "TL0723", Integrity;
    /// Two stores have different histories of one adapter.
    StoreDiverged = "TL0724", Incompatible;

    /// The template that finds user and task in a path is not valid.
    PathTemplate = "TL0801", Usage;
    /// The CSV that gives users and tasks is not valid.
    OwnersInvalid = "TL0802", Malformed;
    /// There is no adapter to audit.
    NothingToAudit = "TL0803", Io;
    /// Adapters that were audited could not be read.
    BrokenAdapters = "TL0804", Malformed;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ascending() {
        // A code that is used twice would tell two failures as one.
        let codes: Vec<&str> = Code::ALL.iter().map(|c| c.as_str()).collect();
        assert!(codes.windows(2).all(|w| w[0] < w[1]), "{codes:?}");
    }
}
