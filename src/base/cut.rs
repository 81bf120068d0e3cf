//! Parts of tensors: where one tensor of a model's class is several on the disk, or a part of one.

/// A part of a tensor. The default is the whole of it.
///
/// Where several fields are set, `index` is taken first; `chunk` counts the axes of the tensor before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Cut {
    /// One entry of the leading axis, which the part lacks: an expert.
    pub(crate) index: Option<usize>,
    /// One of several parts of the same length along an axis.
    pub(crate) chunk: Option<Chunk>,
    /// Whether the part has its last two axes exchanged.
    pub(crate) flip: Flip,
}

/// One of several parts of the same length along an axis: query, key and value, or gate and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Chunk {
    /// The axis of the whole tensor, counted before any index is taken.
    pub(crate) axis: usize,
    /// Which part.
    pub(crate) part: usize,
    /// How many there are.
    pub(crate) of: usize,
    /// Whether entry `i` of the part is entry `i * of + part` of the whole, and not `part * length + i`.
    pub(crate) interleaved: bool,
}

/// Whether the last two axes are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Flip {
    /// They are not.
    #[default]
    No,
    /// They are.
    Yes,
    /// They are where the shape is not the one that the class gives the tensor by its config.
    Unless,
}

impl Cut {
    /// All of a tensor, as it is.
    pub(crate) const WHOLE: Self = Self {
        index: None,
        chunk: None,
        flip: Flip::No,
    };

    /// What `self` is within `outer`; `None` where it is not a part of it, or cannot be said.
    pub(crate) fn within(self, outer: Self) -> Option<Self> {
        if outer == Self::WHOLE {
            return Some(self);
        }
        if outer == self {
            return Some(Self::WHOLE);
        }
        if outer.flip != Flip::No || self.flip != Flip::No {
            return None;
        }
        let index = match (self.index, outer.index) {
            (index, None) => index,
            (a, b) if a == b => None,
            _ => return None,
        };
        let taken = usize::from(outer.index.is_some());
        let chunk = match (self.chunk, outer.chunk) {
            (None, None) => None,
            (Some(chunk), None) => Some(Chunk {
                axis: chunk.axis.checked_sub(taken)?,
                ..chunk
            }),
            (a, b) if a == b => None,
            _ => return None,
        };
        Some(Self {
            index,
            chunk,
            flip: Flip::No,
        })
    }

    /// The extents of the part of a tensor of the extents `whole`; `None` where it has no such part, or its
    /// extents say whether axes are exchanged.
    pub(crate) fn extents(self, whole: &[usize]) -> Option<Vec<usize>> {
        let mut extents = whole.to_vec();
        if let Some(Chunk { axis, part, of, .. }) = self.chunk {
            let axis = extents.get_mut(axis)?;
            if part >= of || !axis.is_multiple_of(of) {
                return None;
            }
            *axis /= of;
        }
        if let Some(index) = self.index {
            let first = (!extents.is_empty()).then(|| extents.remove(0))?;
            if index >= first {
                return None;
            }
        }
        match (self.flip, &mut extents[..]) {
            (Flip::No, _) => Some(extents),
            (Flip::Yes, [.., a, b]) => {
                std::mem::swap(a, b);
                Some(extents)
            }
            _ => None,
        }
    }

    /// Whether two parts of one tensor have nothing in common.
    pub(crate) fn is_apart(self, other: Self) -> bool {
        let indices = matches!((self.index, other.index), (Some(a), Some(b)) if a != b);
        let chunks = match (self.chunk, other.chunk) {
            (Some(a), Some(b)) => {
                (a.axis, a.of, a.interleaved) == (b.axis, b.of, b.interleaved) && a.part != b.part
            }
            _ => false,
        };
        indices || chunks
    }
}

/// What one tensor of the disk is in the model's class: `at` of it is `of` of the class's tensor `class`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// The class's name.
    pub(crate) class: String,
    /// The part of the class's tensor.
    pub(crate) of: Cut,
    /// The part of the disk's tensor that it is.
    pub(crate) at: Cut,
    /// What loading does besides, where that is more than parts say: the name of the operation.
    pub(crate) unknown: Option<String>,
}

/// A part of a stored tensor, which is a part of what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Piece<P> {
    /// The stored tensor.
    pub(crate) place: P,
    /// The part of it.
    pub(crate) at: Cut,
    /// The part of what was asked for.
    pub(crate) of: Cut,
}

/// Where a name leads: one or more pieces, which together are all of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found<P> {
    /// In the order of the stored names.
    pub(crate) pieces: Vec<Piece<P>>,
}

impl<P: Copy> Found<P> {
    /// A stored tensor as it is.
    pub(crate) fn whole(place: P) -> Self {
        let (at, of) = (Cut::WHOLE, Cut::WHOLE);
        Self {
            pieces: vec![Piece { place, at, of }],
        }
    }

    /// The stored tensor, where it is one, and all of it.
    pub(crate) fn as_whole(&self) -> Option<P> {
        match self.pieces[..] {
            [piece] if piece.at == Cut::WHOLE && piece.of == Cut::WHOLE => Some(piece.place),
            _ => None,
        }
    }
}
