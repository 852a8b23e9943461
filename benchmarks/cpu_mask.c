/* Hides instructions of the CPU from libraries, which then run at full speed without them.

   An auditor of the dynamic linker (man 7 rtld-audit): it replaces each CPUID instruction of a library by a trap before
   any code of the library runs, and answers the trap as the CPU does, with bits taken away.

   CPU_MASK_SITES  a folder with a file NAME.sites for each library: the addresses of its CPUID instructions, in hex
   CPU_MASK_BITS   the bits to take away, as LEAF.SUBLEAF.REGISTER.BIT,... with eax, ebx, ecx, edx as 0, 1, 2, 3 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { MOST_BITS = 64, NOT_THERE = 97 };

static struct { unsigned leaf, subleaf, reg, bit; } hidden[MOST_BITS];
static int num_hidden;

static void on_trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned leaf = (unsigned)regs[REG_RAX], subleaf = (unsigned)regs[REG_RCX], found[4];
    __cpuid_count(leaf, subleaf, found[0], found[1], found[2], found[3]);
    for (int i = 0; i < num_hidden; i++)
        if (hidden[i].leaf == leaf && hidden[i].subleaf == subleaf) found[hidden[i].reg] &= ~(1u << hidden[i].bit);
    regs[REG_RAX] = found[0], regs[REG_RBX] = found[1], regs[REG_RCX] = found[2], regs[REG_RDX] = found[3];
}

unsigned la_version(unsigned version) {
    const char *bits = getenv("CPU_MASK_BITS");
    for (int read = 0; bits && num_hidden < MOST_BITS; bits += read + (bits[read] == ','), num_hidden++)
        if (sscanf(bits, "%u.%u.%u.%u%n", &hidden[num_hidden].leaf, &hidden[num_hidden].subleaf,
                   &hidden[num_hidden].reg, &hidden[num_hidden].bit, &read) != 4) break;
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    sigaction(SIGTRAP, &action, NULL);
    return version;
}

unsigned la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie) {
    (void)space, (void)cookie;
    const char *folder = getenv("CPU_MASK_SITES"), *name = strrchr(map->l_name, '/');
    char path[4096];
    if (!folder || !name || snprintf(path, sizeof path, "%s%s.sites", folder, name) >= (int)sizeof path) return 0;
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    long page = sysconf(_SC_PAGESIZE);
    for (unsigned long site; fscanf(file, "%lx", &site) == 1;) {
        uint8_t *at = (uint8_t *)(map->l_addr + site);
        if (at[0] != 0x0f || at[1] != 0xa2) {
            fprintf(stderr, "cpu_mask: %s has no CPUID at %lx; list its sites again\n", name + 1, site);
            _exit(NOT_THERE);
        }
        void *start = (void *)((uintptr_t)at & -page);
        mprotect(start, 2 * page, PROT_READ | PROT_WRITE);
        at[0] = 0xcc, at[1] = 0x90; /* int3; nop */
        mprotect(start, 2 * page, PROT_READ | PROT_EXEC);
    }
    fclose(file);
    return 0;
}
