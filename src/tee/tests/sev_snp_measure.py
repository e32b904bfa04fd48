"""Measures the launch on standard input with sev-snp-measure's own context and VMSA structures.

Vectors of registers come from the package: a vCPU that is not the boot vCPU is its BSP at the reset vector, and the boot vCPU
is that with the registers of 64-bit mode, set here from the AMD64 manual and not from cwrun's code.
"""

import json
import sys

from sevsnpmeasure.gctx import GCTX
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vcpu_types import CPU_SIGS
from sevsnpmeasure.vmsa import VMSA, VmcbSeg


def without_fpu(area):
    """Host kernels before KVM_SEV_INIT2 left x87 and SSE control at zero."""
    area.mxcsr = 0
    area.x87_fcw = 0


def to_long_mode(area, entry, page_tables):
    """Flat 64-bit segments, paging with PAE and NXE, SSE, and KVM's own EFER.SVME and CR4.MCE."""
    area.cs = VmcbSeg(0x08, 0xA9B, 0xFFFFFFFF, 0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(area, name, VmcbSeg(0x10, 0xC93, 0xFFFFFFFF, 0))
    pe, et, ne, wp, pg = 1 << 0, 1 << 4, 1 << 5, 1 << 16, 1 << 31
    pae, mce, osfxsr, osxmmexcpt = 1 << 5, 1 << 6, 1 << 9, 1 << 10
    lme, lma, nxe, svme = 1 << 8, 1 << 10, 1 << 11, 1 << 12
    area.cr0 = pe | et | ne | wp | pg
    area.cr3 = page_tables
    area.cr4 = pae | mce | osfxsr | osxmmexcpt
    area.efer = lme | lma | nxe | svme
    area.rip = entry


def main():
    launch = json.load(sys.stdin)
    signature = CPU_SIGS[launch["cpu"]]
    reset_vector = 0xFFFFFFF0
    make = lambda: VMSA(SevMode.SEV_SNP, reset_vector, signature, launch["sev_features"])
    boot, other = make().bsp_save_area, make().ap_save_area
    to_long_mode(boot, launch["entry"], launch["page_tables"])
    if not launch["fpu"]:
        without_fpu(boot)
        without_fpu(other)

    context = GCTX()
    for page in launch["pages"]:
        gpa, data = page["gpa"], bytes.fromhex(page["bytes"])
        {
            "normal": lambda: context.update_normal_pages(gpa, data),
            "zero": lambda: context.update_zero_pages(gpa, len(data)),
            "unmeasured": lambda: context.update_unmeasured_pages(gpa, len(data)),
            "secrets": lambda: context.update_secrets_page(gpa),
            "cpuid": lambda: context.update_cpuid_page(gpa),
        }[page["kind"]]()
    for index in range(launch["vcpus"]):
        context.update_vmsa_page(bytes(boot if index == 0 else other))
    json.dump({"digest": context.hex_ld(), "boot": bytes(boot).hex(), "other": bytes(other).hex()}, sys.stdout)


main()
