//! To another host by IP Rewrite.

use super::{Call, PortWork};
use crate::{
    Frame, Tables,
    verdict::{Words, dropped},
};
use tenet_tables::DropReason;

impl<F: Frame, T: Tables> Call<'_, F, T> {
    /// A frame that goes to another host in the place of [`PortWork::to`], where no tunnel tells whose it is.
    #[inline(always)]
    pub(super) fn rewritten(&self, work: &mut PortWork, ip: bool, words: Words) -> Words {
        let _ = (work, words);
        dropped(if ip { DropReason::NoRewriteAddress } else { DropReason::RewriteUnsupported })
    }
}
