//! Takes the debug information out of a relocatable 64-bit ELF object.
//!
//! Debian's strip knows no BPF objects, and LLVM's would be one more package of 80 MB.

use anyhow::{Result, bail, ensure};

const HEADER: usize = 64;
const SECTION: usize = 64;
const SYMBOL: usize = 24;
const SYMTAB: u32 = 2;
const REL: u32 = 9;
/// Section numbers from here on mean something else than sections.
const RESERVED: u16 = 0xff00;

struct Section {
    head: Vec<u8>,
    name: String,
    data: Vec<u8>,
}

impl Section {
    fn kind(&self) -> u32 {
        u32_at(&self.head, 4)
    }
    fn link(&self) -> u32 {
        u32_at(&self.head, 40)
    }
    fn info(&self) -> u32 {
        u32_at(&self.head, 44)
    }
}

/// The same object without `.debug_*` sections and their relocations.
///
/// Symbols keep their numbers, so that all other relocations stay right; those that named a section that
/// is gone name none.
///
/// # Errors
/// If the input is not a little-endian ELF64 object, or a needed section points to one that would go.
pub fn without_debug(object: &[u8]) -> Result<Vec<u8>> {
    let mut sections = read(object)?;
    let gone = |s: &Section| s.name.starts_with(".debug_") || s.name.starts_with(".rel.debug_");
    let mut number = Vec::new();
    let mut next = 0u16;
    for s in &sections {
        number.push(if gone(s) { None } else { Some(next) });
        next += u16::from(!gone(s));
    }
    for s in sections.iter_mut().filter(|s| !gone(s)) {
        let renumber = |old: u32| match number.get(old as usize) {
            Some(Some(new)) => Ok(u32::from(*new)),
            _ => bail!("a section that stays needs one that goes"),
        };
        let (link, info, kind) = (renumber(s.link())?, s.info(), s.kind());
        s.head[40..44].copy_from_slice(&link.to_le_bytes());
        if kind == REL {
            let info = renumber(info)?;
            s.head[44..48].copy_from_slice(&info.to_le_bytes());
        }
        if kind == SYMTAB {
            for symbol in s.data.chunks_exact_mut(SYMBOL) {
                let section = u16_at(symbol, 6);
                if section == 0 || section >= RESERVED {
                    continue;
                }
                match number.get(usize::from(section)) {
                    Some(Some(new)) => symbol[6..8].copy_from_slice(&new.to_le_bytes()),
                    _ => {
                        // A local symbol without type, section or value.
                        symbol.fill(0);
                    }
                }
            }
        }
    }
    let names_at = usize::from(u16_at(object, 62));
    let names = number.get(names_at).copied().flatten();
    let Some(names) = names else { bail!("no section holds the section names") };
    sections.retain(|s| !gone(s));
    Ok(write(&object[..HEADER], &sections, names))
}

fn read(object: &[u8]) -> Result<Vec<Section>> {
    ensure!(
        object.len() >= HEADER && object.starts_with(b"\x7fELF\x02\x01"),
        "not a little-endian ELF64 object"
    );
    let at = u64_at(object, 40) as usize;
    let count = usize::from(u16_at(object, 60));
    let names_at = usize::from(u16_at(object, 62));
    ensure!(usize::from(u16_at(object, 58)) == SECTION, "section headers of an unknown size");
    ensure!(
        count.checked_mul(SECTION).and_then(|n| n.checked_add(at)).is_some_and(|end| end <= object.len()),
        "section headers beyond the end"
    );
    let head = |i: usize| &object[at + i * SECTION..at + (i + 1) * SECTION];
    let data = |i: usize| -> Result<&[u8]> {
        let (start, len) = (u64_at(head(i), 24) as usize, u64_at(head(i), 32) as usize);
        // Kind 0 is no section, and kind 8 one without bytes in the file.
        if matches!(u32_at(head(i), 4), 0 | 8) {
            return Ok(&[]);
        }
        start
            .checked_add(len)
            .and_then(|end| object.get(start..end))
            .ok_or_else(|| anyhow::anyhow!("section {i} lies beyond the end"))
    };
    ensure!(names_at < count, "no section holds the section names");
    let names = data(names_at)?;
    (0..count)
        .map(|i| {
            let name = names.get(u32_at(head(i), 0) as usize..).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            Ok(Section {
                head: head(i).to_vec(),
                name: String::from_utf8_lossy(name).into_owned(),
                data: data(i)?.to_vec(),
            })
        })
        .collect()
}

fn write(header: &[u8], sections: &[Section], names: u16) -> Vec<u8> {
    let mut out = header.to_vec();
    let mut heads = Vec::new();
    for s in sections {
        out.resize(out.len().next_multiple_of(8), 0);
        let mut head = s.head.clone();
        head[24..32].copy_from_slice(&(out.len() as u64).to_le_bytes());
        out.extend_from_slice(&s.data);
        heads.extend_from_slice(&head);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let at = out.len() as u64;
    out.extend_from_slice(&heads);
    out[40..48].copy_from_slice(&at.to_le_bytes());
    out[60..62].copy_from_slice(&(sections.len() as u16).to_le_bytes());
    out[62..64].copy_from_slice(&names.to_le_bytes());
    out
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_object() {
        assert!(without_debug(b"").is_err());
        assert!(without_debug(&[0x7f; 80]).is_err());
    }
}
