//! Pins that somebody removed are put back, as long as this process holds what they named.

use crate::sys;
use crate::table::SHAPES;
use crate::{Datapath, Error, Result};
use std::os::fd::AsFd as _;

impl Datapath {
    /// Pins maps again whose pins are gone, and says which. Links are [`Datapath::attach`]'s business.
    ///
    /// Without its pins a map lives only as long as the programs that use it, and the next agent would begin anew.
    pub fn restore_pins(&self) -> Result<Vec<&'static str>> {
        let gone = |name: &str| !self.pins.maps().join(name).exists();
        if !SHAPES.iter().any(|shape| gone(shape.name)) {
            return Ok(Vec::new());
        }
        self.pins.prepare()?;
        let mut restored = Vec::new();
        for id in self.port_in.info.map_ids.iter().chain(&self.uplink_in.info.map_ids) {
            let map = sys::map_by_id(*id).map_err(Error::system("open a map of the programs"))?;
            let name = sys::map_name(map.as_fd()).map_err(Error::system("read a map's name"))?;
            let Some(shape) = SHAPES.iter().find(|shape| shape.name == name && gone(shape.name)) else {
                continue;
            };
            let path = self.pins.maps().join(shape.name);
            sys::obj_pin(map.as_fd(), &path).map_err(Error::system(format!("pin {}", path.display())))?;
            restored.push(shape.name);
        }
        Ok(restored)
    }
}
