//! Rows of integers, each of which stands for (code − zero point) · scale, those of the group that its input is in.

use super::codes::{CODES, round};
use super::decode::Number;
use crate::tensor::Dtype;

/// Numbers whose products are made at a time.
const BLOCK: usize = 256;

/// In which group each input is.
#[derive(Debug)]
pub(super) enum Groups {
    /// So many of them in each, in order.
    Equal(usize),
    /// By input.
    Each(Vec<u32>),
}

impl Groups {
    /// Of what a file lists for each input: most list nothing but their order.
    pub(super) fn of(listed: Vec<u32>) -> Self {
        let first = listed.first().copied();
        let size = listed.iter().take_while(|g| Some(**g) == first).count();
        let in_order = |(i, group): (usize, &u32)| *group as usize == i / size.max(1);
        match listed.iter().enumerate().all(in_order) {
            true => Self::Equal(size),
            false => Self::Each(listed),
        }
    }
}

/// How the codes of a row are made into numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Linear<'w> {
    /// Of a code; 8 at the most.
    pub(super) bits: usize,
    /// Into which products are rounded.
    pub(super) dtype: Dtype,
    pub(super) groups: &'w Groups,
}

impl Linear<'_> {
    /// The numbers of a row's codes into `out`; `of_groups` has the zero point and the scale of each group.
    pub(super) fn row<N: Number>(
        &self,
        codes: &[u8],
        of_groups: &[(f32, f32)],
        asked: Dtype,
        out: &mut [N],
    ) {
        let pays = of_groups.len() * 2 * CODES <= codes.len();
        match self.bits <= 4 && pays {
            true => self.by_tables(codes, of_groups, asked, out),
            false => self.by_products(codes, of_groups, asked, out),
        }
    }

    /// Of codes of four bits at the most: few numbers occur in a group.
    fn by_tables<N: Number>(
        &self,
        codes: &[u8],
        of_groups: &[(f32, f32)],
        asked: Dtype,
        out: &mut [N],
    ) {
        let mut values = Vec::with_capacity(of_groups.len() * CODES);
        for (zero, scale) in of_groups {
            values.extend((0..CODES).map(|code| (code as f32 - zero) * scale));
        }
        round(self.dtype, &mut values);
        let mut tables = vec![[N::default(); CODES]; of_groups.len()];
        N::of_all(&values, asked, tables.as_flattened_mut());
        match self.groups {
            Groups::Equal(size) => {
                let size = (*size).max(1);
                let groups = out.chunks_mut(size).zip(codes.chunks(size));
                for ((out, codes), table) in groups.zip(&tables) {
                    N::look_up(table, codes, out);
                }
            }
            Groups::Each(groups) => {
                for ((o, code), group) in out.iter_mut().zip(codes).zip(groups) {
                    *o = tables[*group as usize][usize::from(*code) & (CODES - 1)];
                }
            }
        }
    }

    fn by_products<N: Number>(
        &self,
        codes: &[u8],
        of_groups: &[(f32, f32)],
        asked: Dtype,
        out: &mut [N],
    ) {
        let mut values = [0.0; BLOCK];
        let blocks = out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK));
        for (at, (out, codes)) in (0..).step_by(BLOCK).zip(blocks) {
            let values = &mut values[..out.len()];
            match self.groups {
                Groups::Equal(size) => {
                    // From the middle of a group on.
                    let (size, mut from) = ((*size).max(1), 0);
                    for (zero, scale) in of_groups.iter().skip(at / size) {
                        let to = ((at + from) / size * size + size - at).min(values.len());
                        for (v, code) in values[from..to].iter_mut().zip(&codes[from..to]) {
                            *v = (f32::from(*code) - zero) * scale;
                        }
                        from = to;
                        if from == values.len() {
                            break;
                        }
                    }
                }
                Groups::Each(groups) => {
                    let groups = groups.iter().skip(at);
                    for ((v, code), group) in values.iter_mut().zip(codes).zip(groups) {
                        let (zero, scale) = of_groups[*group as usize];
                        *v = (f32::from(*code) - zero) * scale;
                    }
                }
            }
            round(self.dtype, values);
            N::of_all(values, asked, out);
        }
    }
}
