/*
 * check.h
 *		Which values a key's settings may have.
 */
#ifndef CHECK_H
#define CHECK_H

#include "datatype/timestamp.h"

extern void check_settings(Datum *values, bool *nulls, const bool *changed,
						   TimestampTz created_at);
extern TimestampTz check_latest_end(TimestampTz created_at);
extern text *check_without_tokens(text *value);

#endif
