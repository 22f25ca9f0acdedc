// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Livepatches to try the boot test with, good ones and bad ones.
 *
 * A module is this file, included after the definitions that make the variant:
 *   OBJECT    name of the module that is patched; left out for vmlinux
 *   FUNCTION  the function that is replaced, with REPLACEMENT as its new body
 *   ON_LOAD   what the module does when it is loaded, before it asks for the patch
 *   NO_PATCH  a module that patches nothing
 */
#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/seq_file.h>
#include <linux/fs.h>
#include <linux/workqueue.h>

#ifndef OBJECT
#define OBJECT NULL
#endif
#ifndef ON_LOAD
#define ON_LOAD
#endif

#ifndef NO_PATCH
REPLACEMENT

static struct klp_func functions[] = {
	{ .old_name = FUNCTION, .new_func = replacement },
	{ }
};

static struct klp_object objects[] = {
	{ .name = OBJECT, .funcs = functions },
	{ }
};

static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects, .replace = true };

MODULE_INFO(livepatch, "Y");
#endif

static int __init start(void)
{
	ON_LOAD
#ifdef NO_PATCH
	return 0;
#else
	return klp_enable_patch(&patch);
#endif
}

static void __exit stop(void)
{
}

module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A livepatch to try the boot test with");
