/*
 * policy.h
 *		The policies that bind a key.
 */
#ifndef POLICY_H
#define POLICY_H

#include "datatype/timestamp.h"
#include "utils/array.h"

/* A row of policies.  A pointer that is NULL stands for NULL. */
typedef struct Policy
{
	text	   *tenant;			/* NULL: every */
	text	   *environment;	/* NULL: every */
	Interval   *max_lifetime;
	int			max_keys;		/* -1: no limit */
	ArrayType  *allowed_scopes;
	bool		require_cidrs;
	bool		require_owner;
} Policy;

/* A tenant's and every tenant's, each for an environment and for every. */
#define POLICY_MAX 4

extern bool policy_exists(void);
extern int	policy_find(text *tenant, text *environment, Policy *policies);
extern const char *policy_words(const Policy *policy);
extern TimestampTz policy_latest_end(text *tenant, text *environment,
									 TimestampTz created_at);
extern void policy_check(const Datum *values, const bool *nulls,
						 const bool *changed, TimestampTz created_at);

#endif
