//! Panels in the forms in which they are multiplied: as they are packed, or with some parts unpacked.

use std::marker::PhantomData;

use super::activations::PARTS;
use super::format::{Format, Scales};
use super::lanes::{Bytes, Groups, Lanes, ROWS};

/// Elements of a part of a panel, as activations' blocks have.
const PART: usize = super::activations::LEN;

/// A panel in some form.
pub(super) trait Panel: Copy {
    type Format: Format;
    /// The ways in which a part lies in a unit: as many as a unit has parts.
    const WAYS: usize;
    fn group<S: Lanes>(self, s: S, part: usize, g: usize) -> S::I;
    fn scales<S: Lanes>(self, s: S, part: usize) -> Scales<S::F>;
    /// Asks memory for what will be needed soon, a part at a time.
    #[inline(always)]
    fn prefetch<S: Lanes>(self, _: S, _part: usize) {}
}

/// As it is packed.
pub(super) struct Direct<'a, F>(pub(super) &'a [u8], pub(super) PhantomData<F>);

impl<F> Clone for Direct<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Direct<'_, F> {}

impl<'a, F: Format> Direct<'a, F> {
    /// The unit that a part lies in, and which of it that is.
    #[inline(always)]
    fn unit(self, part: usize) -> (&'a [u8], usize) {
        (&self.0[part / Self::WAYS * F::UNIT..][..F::UNIT], part % Self::WAYS)
    }
}

impl<F: Format> Panel for Direct<'_, F> {
    type Format = F;
    const WAYS: usize = F::LEN / PART;

    #[inline(always)]
    fn group<S: Lanes>(self, s: S, part: usize, g: usize) -> S::I {
        let (unit, part) = self.unit(part);
        F::group(s, unit, part, g)
    }
    #[inline(always)]
    fn scales<S: Lanes>(self, s: S, part: usize) -> Scales<S::F> {
        let (unit, part) = self.unit(part);
        F::scales(s, unit, part)
    }
    #[inline(always)]
    fn prefetch<S: Lanes>(self, s: S, part: usize) {
        if const { S::AHEAD == 0 } {
            return;
        }
        let bytes = F::UNIT / Self::WAYS;
        // Of 256 elements a row, the first parts read what the others need too: more than their share.
        let ahead = S::AHEAD + if Self::WAYS == 8 { F::UNIT / 4 } else { 0 };
        let ahead = self.0.as_ptr().wrapping_add(part * bytes + ahead);
        for line in (0..bytes).step_by(64) {
            s.prefetch(ahead.wrapping_add(line));
        }
    }
}

/// 32 elements of [`ROWS`] rows, as bytes with their scales.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Part {
    pub(super) elements: [Bytes; 8],
    scale: [[f32; ROWS]; 2],
    minimum: [[f32; ROWS]; 2],
}

impl Part {
    pub(super) const EMPTY: Self =
        Self { elements: [[0; 4 * ROWS]; 8], scale: [[0.0; ROWS]; 2], minimum: [[0.0; ROWS]; 2] };
}

/// Some parts of a panel.
pub(super) struct Unpacked<'a, F>(pub(super) &'a [Part; PARTS], pub(super) PhantomData<F>);

impl<F> Clone for Unpacked<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Unpacked<'_, F> {}

impl<F: Format> Panel for Unpacked<'_, F> {
    type Format = F;
    const WAYS: usize = 1;

    #[inline(always)]
    fn group<S: Lanes>(self, s: S, part: usize, g: usize) -> S::I {
        s.bytes(&self.0[part].elements[g])
    }
    #[inline(always)]
    fn scales<S: Lanes>(self, s: S, part: usize) -> Scales<S::F> {
        let part = &self.0[part];
        Scales {
            scale: [s.load(&part.scale[0]), s.load(&part.scale[1])],
            minimum: [s.load(&part.minimum[0]), s.load(&part.minimum[1])],
        }
    }
}

/// A part of a panel.
pub(super) struct PartOf<P> {
    pub(super) panel: P,
    pub(super) part: usize,
}

impl<P: Copy> Clone for PartOf<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Copy> Copy for PartOf<P> {}

impl<S: Lanes, P: Panel> Groups<S> for PartOf<P> {
    type Elements = P::Format;

    #[inline(always)]
    fn group(self, s: S, g: usize) -> S::I {
        self.panel.group(s, self.part, g)
    }
}

#[inline(always)]
pub(super) fn unpack<S: Lanes, F: Format>(
    s: S,
    panel: Direct<'_, F>,
    part: usize,
    signed: bool,
    to: &mut Part,
) {
    for (g, to) in to.elements.iter_mut().enumerate() {
        let group = panel.group(s, part, g);
        let group = match S::offset::<F>() {
            Some(offset) if signed => s.subtract(group, offset as u8),
            _ => group,
        };
        s.store_bytes(group, to);
    }
    let Scales { scale, minimum } = panel.scales(s, part);
    for i in 0..2 {
        s.store(scale[i], &mut to.scale[i]);
        s.store(minimum[i], &mut to.minimum[i]);
    }
}
