/*
 * compat.h
 *		The differences between PostgreSQL versions.
 *
 * This file has the only #if on a version.  It defines the new names for old
 * servers, so that callers read as today's PostgreSQL.  The number in a comment
 * is the major version that brought the change.
 */
#ifndef COMPAT_H
#define COMPAT_H

#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/relcache.h"

/* 16: the macros for varlena have a header of their own. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/* 17: process numbers replace backend ids. */
#if PG_VERSION_NUM < 170000
#include "storage/backendid.h"
#endif

#if PG_VERSION_NUM < 150000
#error "rk_apikeys needs PostgreSQL 15 or later"
#endif

/* 16: object_ownercheck() is for all classes.  We call it for tables only. */
#if PG_VERSION_NUM < 160000
static inline bool
object_ownercheck(Oid classid, Oid objectid, Oid roleid)
{
	Assert(classid == RelationRelationId);
	return pg_class_ownercheck(objectid, roleid);
}
#endif

/* 16: object_aclcheck() is for all classes.  We call it for functions only. */
#if PG_VERSION_NUM < 160000
static inline AclResult
object_aclcheck(Oid classid, Oid objectid, Oid roleid, AclMode mode)
{
	Assert(classid == ProcedureRelationId);
	return pg_proc_aclcheck(objectid, roleid, mode);
}
#endif

/* 16: RelFileNode became RelFileLocator. */
#if PG_VERSION_NUM < 160000
#include "storage/relfilenode.h"
#define RelFileLocator RelFileNode
#define rd_locator rd_node
#else
#include "storage/relfilelocator.h"
#endif

/*
 * 18: index_beginscan() has a parameter for the scan's statistics; 19: another
 * one for flags.
 */
#if PG_VERSION_NUM >= 190000
#define index_beginscan(heap, index, snapshot, nkeys, norderbys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, norderbys, SO_NONE)
#elif PG_VERSION_NUM >= 180000
#define index_beginscan(heap, index, snapshot, nkeys, norderbys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, norderbys)
#endif

/* 18: RelationGetPrimaryKeyIndex() says whether the key may be deferrable. */
#if PG_VERSION_NUM < 180000
#define RelationGetPrimaryKeyIndex(rel, deferrable_ok) \
	RelationGetPrimaryKeyIndex(rel)
#endif

/* 18: ExecutorRun() has lost the parameter execute_once. */
#if PG_VERSION_NUM < 180000
#define COMPAT_RUN_PARAMS uint64 count, bool execute_once
#define COMPAT_RUN_ARGS count, execute_once
#else
#define COMPAT_RUN_PARAMS uint64 count
#define COMPAT_RUN_ARGS count
#endif

/* 18: pg_noreturn stands in front of a function that does not return. */
#if PG_VERSION_NUM < 180000
#define pg_noreturn __attribute__((noreturn))
#endif

/* 18: pg_b64_decode() writes uint8 instead of char. */
#if PG_VERSION_NUM < 180000
#define compat_b64_decode(src, len, dst, dstlen) \
	pg_b64_decode(src, len, (char *) (dst), dstlen)
#else
#define compat_b64_decode(src, len, dst, dstlen) \
	pg_b64_decode(src, len, dst, dstlen)
#endif

/* 16: a setting can refuse RESET. */
#if PG_VERSION_NUM < 160000
#define COMPAT_GUC_NO_RESET 0
#else
#define COMPAT_GUC_NO_RESET GUC_NO_RESET
#endif

/*
 * 17: a library can get shared memory by name at any time.  Before 17 only a
 * preloaded library can reserve shared memory.  19: the callback that makes the
 * memory has an argument.
 */
#if PG_VERSION_NUM < 170000
#define COMPAT_NAMED_DSM false
static inline void *
GetNamedDSMSegment(const char *name, size_t size,
				   void (*init_callback) (void *ptr), bool *found)
{
	return NULL;
}
#else
#define COMPAT_NAMED_DSM true
#include "storage/dsm_registry.h"
#endif
#if PG_VERSION_NUM >= 190000
#define COMPAT_DSM_INIT_PARAMS void *memory, void *arg
#else
#define COMPAT_DSM_INIT_PARAMS void *memory
#define GetNamedDSMSegment(name, size, init_callback, found, arg) \
	GetNamedDSMSegment(name, size, init_callback, found)
#endif

/* 19: a tranche of locks gets its name when it is made, for all processes. */
#if PG_VERSION_NUM < 190000
#define LWLockNewTrancheId(name) LWLockNewTrancheId()
#else
#define LWLockRegisterTranche(id, name) ((void) 0)
#endif

/* 19: the hook after parse analysis may not change the jumble state. */
#if PG_VERSION_NUM < 190000
#define COMPAT_JUMBLE_STATE JumbleState
#else
#define COMPAT_JUMBLE_STATE const JumbleState
#endif

/* 18: the magic block has the library's name and version. */
#if PG_VERSION_NUM < 180000
#define PG_MODULE_MAGIC_EXT(...) PG_MODULE_MAGIC
#endif

/*
 * 17: MyProcNumber counts from 0; MyBackendId counted from 1.  This number
 * counts from 1, and is 0 in a process without a number.
 */
#if PG_VERSION_NUM < 170000
#define COMPAT_BACKEND_NUMBER (MyBackendId > 0 ? MyBackendId : 0)
#else
#define COMPAT_BACKEND_NUMBER (MyProcNumber >= 0 ? MyProcNumber + 1 : 0)
#endif

/* 17: the virtual transaction id of a process has a struct of its own. */
#if PG_VERSION_NUM < 170000
#define COMPAT_LXID (MyProc->lxid)
#else
#define COMPAT_LXID (MyProc->vxid.lxid)
#endif

/*
 * The greatest number of a process that verifies.  Auxiliary processes, which
 * have greater numbers, verify nothing.
 */
#define COMPAT_BACKENDS MaxBackends

/*
 * Minor versions since 2026 declare timingsafe_bcmp(), and define it where the
 * C library does not.  Older minor versions do neither.
 *
 * Return 0 if two buffers are equal, else 1.  The time depends on the length,
 * and not on the contents.
 */
#ifndef HAVE_DECL_TIMINGSAFE_BCMP
static inline int
rk_apikeys_timingsafe_bcmp(const void *b1, const void *b2, size_t n)
{
	const volatile unsigned char *p1 = b1;
	const volatile unsigned char *p2 = b2;
	unsigned char difference = 0;

	for (; n > 0; n--)
		difference |= *p1++ ^ *p2++;
	return difference != 0;
}
#define timingsafe_bcmp rk_apikeys_timingsafe_bcmp
#endif

#endif
