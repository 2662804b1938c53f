mod listen;
mod pki;
