/*
 * guard.h
 *		The row triggers of api_keys.
 */
#ifndef GUARD_H
#define GUARD_H

#include "commands/trigger.h"
#include "fmgr.h"

/* What rotate_key() tells the trigger of its INSERT. */
typedef struct GuardRotation
{
	const char *key_id;			/* of the old key; NULL: no rotation */
	bool		has_expires_at; /* the successor has its own */
} GuardRotation;

extern GuardRotation guard_rotation;

extern TriggerData *guard_trigger(FunctionCallInfo fcinfo, const char *name);

#endif
