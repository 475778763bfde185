/*
 * delegate.h
 *		What a key may do that manages keys: the principal's own limits.
 *
 * values and nulls are the columns of a row of api_keys, by KeyColumn - 1.
 */
#ifndef DELEGATE_H
#define DELEGATE_H

extern void delegate_check_old(const Datum *values);
extern void delegate_check(const Datum *values, const bool *nulls,
						   const bool *changed);
extern void delegate_check_member(const Datum *values);
extern void delegate_lock(void *arg);

#endif
