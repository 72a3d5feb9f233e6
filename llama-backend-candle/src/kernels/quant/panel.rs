//! Panels in the forms in which they are multiplied: as they are packed, or with some parts unpacked.

use std::marker::PhantomData;
use std::ops::Range;

use super::activations::PARTS;
use super::format::{Format, Scales};
use super::lanes::{Bytes, Groups, Lanes, ROWS};

/// Elements of a part of a panel, as activations' blocks have.
const PART: usize = super::activations::LEN;

/// A panel in some form.
pub(super) trait Panel: Copy {
    type Format: Format;
    type Unit: Unit<Format = Self::Format>;
    fn unit(self, i: usize) -> Self::Unit;
}

/// Parts of a panel that lie together.
pub(super) trait Unit: Copy {
    type Format: Format;
    /// How many they are.
    const PARTS: usize;
    /// All parts are read in the same way.
    const ALIKE: bool;
    fn group<S: Lanes>(self, s: S, part: usize, g: usize) -> S::I;
    /// See [`Format::Common`].
    type Common<F: Copy>: Copy;
    fn common<S: Lanes>(self, s: S) -> Self::Common<S::F>;
    fn scales<S: Lanes>(self, s: S, common: &Self::Common<S::F>, part: usize) -> Scales<S::F>;
    /// See [`Groups::signs`].
    #[inline(always)]
    fn signs<S: Lanes>(self, _: S, _part: usize, _g: usize) -> Option<S::I> {
        None
    }
    /// See [`Groups::of_zeros`].
    #[inline(always)]
    fn of_zeros<S: Lanes>(self, s: S) -> S::I {
        s.bytes(&[0; 4 * ROWS])
    }
}

/// As it is packed: a panel, or a unit.
pub(super) struct Direct<'a, F>(pub(super) &'a [u8], pub(super) PhantomData<F>);

impl<F> Clone for Direct<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Direct<'_, F> {}

impl<'a, F: Format> Direct<'a, F> {
    /// The bytes of some parts of a panel, which begin with a unit.
    #[inline(always)]
    pub(super) fn bytes(self, parts: Range<usize>) -> &'a [u8] {
        &self.0[parts.start / Self::PARTS * F::UNIT..parts.end.div_ceil(Self::PARTS) * F::UNIT]
    }

    /// Asks memory for what will be needed soon: with each group, its share of a part.
    #[inline(always)]
    fn prefetch<S: Lanes>(self, s: S, part: usize, g: usize) {
        if const { S::AHEAD == 0 } {
            return;
        }
        let bytes = F::UNIT / Self::PARTS;
        // Of 256 elements a row, the first parts read scales, and of some types bits, that the others need too: more than their share.
        let ahead = S::AHEAD + if Self::PARTS == 8 { F::UNIT / 2 } else { 0 };
        s.prefetch_share(self.0.as_ptr().wrapping_add(part * bytes + ahead), bytes, g, 8);
    }
}

impl<F: Format> Panel for Direct<'_, F> {
    type Format = F;
    type Unit = Self;

    #[inline(always)]
    fn unit(self, i: usize) -> Self {
        Self(&self.0[i * F::UNIT..][..F::UNIT], PhantomData)
    }
}

impl<F: Format> Unit for Direct<'_, F> {
    type Format = F;
    const PARTS: usize = F::LEN / PART;
    const ALIKE: bool = F::ALIKE;

    #[inline(always)]
    fn group<S: Lanes>(self, s: S, part: usize, g: usize) -> S::I {
        self.prefetch(s, part, g);
        F::group(s, self.0, part, g)
    }
    type Common<V: Copy> = F::Common<V>;
    #[inline(always)]
    fn common<S: Lanes>(self, s: S) -> F::Common<S::F> {
        F::common(s, self.0)
    }
    #[inline(always)]
    fn scales<S: Lanes>(self, s: S, common: &F::Common<S::F>, part: usize) -> Scales<S::F> {
        F::scales(s, self.0, common, part)
    }
}

/// 32 elements of [`ROWS`] rows, as bytes with their scales.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Part {
    pub(super) elements: [Bytes; 8],
    /// Where elements are apart: of [`Format`]s whose elements are signed, on some processors.
    signs: [Bytes; 8],
    of_zeros: Bytes,
    scale: [[f32; ROWS]; 2],
    minimum: [[f32; ROWS]; 2],
}

impl Part {
    pub(super) const EMPTY: Self = Self {
        elements: [[0; 4 * ROWS]; 8],
        signs: [[0; 4 * ROWS]; 8],
        of_zeros: [0; 4 * ROWS],
        scale: [[0.0; ROWS]; 2],
        minimum: [[0.0; ROWS]; 2],
    };
}

/// Some parts of a panel.
pub(super) struct Unpacked<'a, F>(pub(super) &'a [Part; PARTS], pub(super) PhantomData<F>);

impl<F> Clone for Unpacked<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for Unpacked<'_, F> {}

impl<'a, F: Format> Panel for Unpacked<'a, F> {
    type Format = F;
    type Unit = UnpackedPart<'a, F>;

    #[inline(always)]
    fn unit(self, i: usize) -> Self::Unit {
        UnpackedPart(&self.0[i], PhantomData)
    }
}

/// One part.
pub(super) struct UnpackedPart<'a, F>(&'a Part, PhantomData<F>);

impl<F> Clone for UnpackedPart<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<F> Copy for UnpackedPart<'_, F> {}

impl<F: Format> Unit for UnpackedPart<'_, F> {
    type Format = F;
    const PARTS: usize = 1;
    const ALIKE: bool = true;

    #[inline(always)]
    fn group<S: Lanes>(self, s: S, _: usize, g: usize) -> S::I {
        s.bytes(&self.0.elements[g])
    }
    type Common<V: Copy> = ();
    #[inline(always)]
    fn common<S: Lanes>(self, _: S) {}
    #[inline(always)]
    fn scales<S: Lanes>(self, s: S, (): &(), _: usize) -> Scales<S::F> {
        Scales {
            scale: [s.load(&self.0.scale[0]), s.load(&self.0.scale[1])],
            minimum: [s.load(&self.0.minimum[0]), s.load(&self.0.minimum[1])],
        }
    }
    #[inline(always)]
    fn signs<S: Lanes>(self, s: S, part: usize, g: usize) -> Option<S::I> {
        // Only whether there are any is asked, which the compiler knows.
        match s.apart(self.group(s, part, g)) {
            Some(_) if F::SIGNED => Some(s.bytes(&self.0.signs[g])),
            _ => None,
        }
    }
    #[inline(always)]
    fn of_zeros<S: Lanes>(self, s: S) -> S::I {
        s.bytes(&self.0.of_zeros)
    }
}

/// A part of a unit.
#[derive(Clone, Copy)]
pub(super) struct PartOf<U> {
    pub(super) unit: U,
    pub(super) part: usize,
}

impl<S: Lanes, U: Unit> Groups<S> for PartOf<U> {
    type Elements = U::Format;

    #[inline(always)]
    fn group(self, s: S, g: usize) -> S::I {
        self.unit.group(s, self.part, g)
    }
    #[inline(always)]
    fn signs(self, s: S, g: usize) -> Option<S::I> {
        self.unit.signs(s, self.part, g)
    }
    #[inline(always)]
    fn of_zeros(self, s: S) -> S::I {
        self.unit.of_zeros(s)
    }
}

/// Unpacks the first parts of a unit.
#[inline(always)]
pub(super) fn unpack<S: Lanes, F: Format>(s: S, unit: Direct<'_, F>, signed: bool, to: &mut [Part]) {
    let common = unit.common(s);
    for (part, to) in to.iter_mut().enumerate() {
        unpack_part(s, unit, &common, part, signed, to);
    }
}

#[inline(always)]
fn unpack_part<S: Lanes, F: Format>(
    s: S,
    unit: Direct<'_, F>,
    common: &F::Common<S::F>,
    part: usize,
    signed: bool,
    to: &mut Part,
) {
    let mut apart = false;
    for (g, (to, signs)) in to.elements.iter_mut().zip(&mut to.signs).enumerate() {
        let group = F::group(s, unit.0, part, g);
        let group = match S::offset::<F>() {
            Some(offset) if signed => s.subtract(group, offset as u8),
            _ => group,
        };
        match s.apart(group) {
            Some(both) if F::SIGNED => {
                s.store_bytes(both[0], to);
                s.store_bytes(both[1], signs);
                apart = true;
            }
            _ => s.store_bytes(group, to),
        }
    }
    if apart {
        const { assert!(!(F::SIGNED && F::BY_16), "sums of signed elements are of a whole part") };
        to.of_zeros = [0; 4 * ROWS];
        let part = PartOf { unit: UnpackedPart::<F>(to, PhantomData), part: 0 };
        let [of_zeros] = s.dots::<_, 1, 0, 8>(part, [&[[0; 4]; 8]]);
        s.store_bytes(of_zeros, &mut to.of_zeros);
    }
    let Scales { scale, minimum } = unit.scales(s, common, part);
    for i in 0..2 {
        s.store(scale[i], &mut to.scale[i]);
        s.store(minimum[i], &mut to.minimum[i]);
    }
}
